/* chamber/organism.h: where the episodes lie that organisms are measured on. */
#ifndef OP_CHAMBER_ORGANISM_H
#define OP_CHAMBER_ORGANISM_H

#include <operant/chamber.h>

#define CHAMBER_FRESH ((uint64_t)1 << 40) /* far behind those that teach */

#endif

/* cli/protocol.h: the part of operant train that runs protocol files. */
#ifndef OP_CLI_PROTOCOL_H
#define OP_CLI_PROTOCOL_H

#include "cli/cli.h"

/* The protocol file among the arguments (alone or after --config): a YAML file with stages. NULL: none. */
const char *cli_protocol_file(int argc, char **argv);
/* Runs it; the other arguments are settings of its top level. Returns the exit code. */
int cli_protocol_run(const cli_command *c, const char *file, int argc, char **argv);

#endif

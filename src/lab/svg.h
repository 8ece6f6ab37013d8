/* lab/svg.h: the pen of the plots. Colours and type come from the classes of the page's style sheet (page.c). */
#ifndef OP_LAB_SVG_H
#define OP_LAB_SVG_H

#include "lab/page.h"

enum { OP_SVG_WIDTH = 720 };

void op_svg_begin(op_page *p, int height, const char *title);
/* `anchor`: start, middle or end */
void op_svg_text(op_page *p, double x, double y, const char *class, const char *anchor, const char *text);
void op_svg_line(op_page *p, const char *class, double x1, double y1, double x2, double y2);
void op_svg_dot(op_page *p, const char *class, double x, double y, const char *title);
/* 1, 2 or 5 times a power of ten, near a fifth of the span > 0. */
double op_svg_tick(double span);

#endif

#include "lab/svg.h"

#include <math.h>

void op_svg_begin(op_page *p, int height, const char *title)
{
    op_page_put(p, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"", OP_SVG_WIDTH, height);
    op_page_text(p, title);
    op_page_put(p, "\">\n");
}

void op_svg_text(op_page *p, double x, double y, const char *class, const char *anchor, const char *text)
{
    op_page_put(p, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\" text-anchor=\"%s\">", x, y, class, anchor);
    op_page_text(p, text);
    op_page_put(p, "</text>\n");
}

void op_svg_line(op_page *p, const char *class, double x1, double y1, double x2, double y2)
{
    op_page_put(p, "<line class=\"%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", class, x1, y1, x2, y2);
}

void op_svg_dot(op_page *p, const char *class, double x, double y, const char *title)
{
    op_page_put(p, "<circle class=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"5\"><title>", class, x, y);
    op_page_text(p, title);
    op_page_put(p, "</title></circle>\n");
}

double op_svg_tick(double span)
{
    double rough = span / 5, power = pow(10, floor(log10(rough))), r = rough / power;
    return power * (r < 1.5 ? 1 : r < 3.5 ? 2 : r < 7.5 ? 5 : 10);
}

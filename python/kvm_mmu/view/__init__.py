"""How results are shown: text and markdown tables, SVG, notebook HTML, files written whole. Knows no MMU."""

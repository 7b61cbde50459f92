"""The TDP MMU: one tree of tables for each address space, walked by gfn, without reverse maps (v6.1 to v7.3).

A table is a `ShadowPage` that is in no hash and on no list; its mode is that of its root. Reading order: `iter` (the
walk), `page` (a table's begin and end), `change` (the one writer of entries), `roots`, `split`, `map`, `zap`, `age`,
`dirty_log`, `collapse`.
"""

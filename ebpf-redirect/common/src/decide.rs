//! Pure decisions of the hooks. Filled by the programs' needs; no I/O, no map access.

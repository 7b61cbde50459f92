//! The ghost of a VM: what backed every gfn and since when, what processors may still hold, which flushes are owed and by
//! whom, what was written and what is tracked. A feature of a VM, off unless asked for.
//!
//! Models no kernel function: it is the judge's memory. It is told of writes, flushes and publications by the one place
//! that does each, and never asks; what a word of an SPTE means it is told, too. It changes no digest, no event and no
//! order. Above: `vm` holds it, `watch::judge` reads it. Below: nothing but plain values.

pub mod backing;
pub mod debts;
pub mod holders;
pub mod memory;
pub mod operations;
pub mod promises;
pub mod told;

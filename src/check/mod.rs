//! The search for unsound states: a world of a few operations, every order of them, and the judge after each.
//!
//! Owns worlds, states with paused operations, the exhaustive search and the random one. Knows the facade of the model and
//! nothing of its rooms; below it stands nobody, above it the border to Python. The generation policy is data of a world.
//! No clock and no global random state: the same world, seed and bound give the same result on any number of threads.

pub mod bfs;
pub mod policy;
pub mod random;
pub mod state;
pub mod update;
pub mod world;

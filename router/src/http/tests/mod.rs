//! Routes over a scripted engine.

mod replay_tmp;

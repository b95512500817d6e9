//! The launcher as it runs: a real process with real children, which are small shell scripts.

mod failure;
mod flags;
mod logs;
mod stage;
mod start;
mod stop;

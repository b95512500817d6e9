//! What an answer must look like, held to while it is generated: a grammar is compiled before its request is admitted, and then says
//! before each token which tokens may come.
//!
//! The language work is llguidance's. Nothing here knows requests, routes or the engine.

mod budget;
mod compiler;
mod constraint;
mod formats;
mod schema;
mod tool_grammar;
mod tool_schema;
mod vocabulary;

#[cfg(test)]
mod fuzz;

pub use budget::ReasoningBudget;
pub use compiler::GrammarCompiler;
pub use constraint::Constraint;

/// Why a grammar cannot be used, or an answer cannot go on under it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// What the client wrote cannot be compiled.
    #[error("{0}")]
    Invalid(String),
    /// It is right, but takes more than a request may take.
    #[error("{0}")]
    TooComplex(String),
    /// This model's tokenizer cannot be constrained.
    #[error("grammars are not supported by this model: {0}")]
    Unsupported(String),
    /// Too many others are being compiled.
    #[error("too many grammars are being compiled, try again")]
    Busy,
}

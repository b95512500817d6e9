//! The model folder's tokenizer, loaded once and shared.

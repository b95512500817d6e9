//! The road of one request, straight through: validate, submit, detokenize.

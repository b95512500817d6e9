//! Checks where the model comes from.

use std::path::PathBuf;

use super::Secret;
use super::check::Check;
use crate::args::ModelArgs;

/// Where the model comes from.
#[derive(Debug)]
pub struct ModelSource {
    /// None: the demo model.
    pub model_id: Option<String>,
    pub revision: Option<String>,
    pub cache_dir: Option<PathBuf>,
    /// A directory to take in place of `model_id`, which stays the model's name.
    pub directory: Option<PathBuf>,
    pub hub_token: Option<Secret>,
}

impl ModelSource {
    /// The name that clients use.
    pub fn name(&self) -> &str {
        self.model_id.as_deref().unwrap_or("text-gen-demo")
    }

    /// Whether the model is the one that comes with the program.
    pub fn is_demo(&self) -> bool {
        self.model_id.is_none()
    }
}

pub(super) fn model_source(model: &ModelArgs, check: &mut Check) -> ModelSource {
    let weights = model.weights_cache_override.as_ref().map(PathBuf::from);
    let holds_a_model = weights
        .as_ref()
        .is_some_and(|dir| dir.join("config.json").is_file());
    let (directory, cache_dir) = if holds_a_model {
        (weights, None)
    } else {
        (None, weights)
    };
    for (flag, value) in [
        ("--model-id", &model.model_id),
        ("--revision", &model.revision),
    ] {
        if value
            .as_ref()
            .is_some_and(|value| value.is_empty() || value.chars().any(char::is_control))
        {
            check.errors.push(format!("{flag} is empty or holds control characters: give a name or a path, or leave it out"));
        }
    }
    ModelSource {
        model_id: model.model_id.clone(),
        revision: model.revision.clone(),
        cache_dir: cache_dir.or_else(|| model.huggingface_hub_cache.as_ref().map(PathBuf::from)),
        directory,
        hub_token: model.hf_api_token.clone().map(Secret),
    }
}

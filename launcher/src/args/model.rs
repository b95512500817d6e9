//! Flags about the model: which one, from where, in which precision.

/// As typed; see `config`.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Name of a model on the Hugging Face hub, or a local directory in the format of `save_pretrained`
    ///
    /// Without it the small demo model is served, which comes with the program.
    #[arg(long, env)]
    pub model_id: Option<String>,

    /// Commit, branch or tag of the model on the hub
    #[arg(long, env)]
    pub revision: Option<String>,

    /// Directory of the hub cache
    #[arg(long, env)]
    pub huggingface_hub_cache: Option<String>,

    /// Directory that holds the model's files; without a config.json in it, directory of the hub cache
    #[arg(long, env)]
    pub weights_cache_override: Option<String>,

    /// Token for the hub, where HF_TOKEN is not set
    #[arg(long, env, hide = true, hide_env_values = true)]
    pub hf_api_token: Option<String>,

    /// Precision of the computation: auto (the model's own), float16, bfloat16, float32
    #[arg(long, env)]
    pub dtype: Option<String>,

    /// Weights of fewer bits, rounded when they are loaded: int8, int4 on CPUs, fp8 on GPUs
    #[arg(long, env)]
    pub quantize: Option<String>,

    /// Keys and values of fewer bits, on GPUs: fp8_e4m3fn, fp8_e5m2; auto: the precision of the computation
    #[arg(long, env, default_value = "auto")]
    pub kv_cache_dtype: String,

    /// Scaling of rotary positions: linear, dynamic. Goes together with --rope-factor
    #[arg(long, env)]
    pub rope_scaling: Option<String>,

    /// Factor of the scaling of rotary positions; without --rope-scaling the scaling is linear
    #[arg(long, env)]
    pub rope_factor: Option<String>,
}

//! What the launcher looks up besides its flags: visible devices, the directory for temporary files, its own place.

use std::path::{Path, PathBuf};

/// Read once at start, so that `config` is a pure function.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    pub cuda_visible_devices: Option<String>,
    pub nvidia_visible_devices: Option<String>,
    /// GPUs that the kernel driver knows.
    pub num_driver_gpus: usize,
    pub temp_dir: PathBuf,
    /// Where the launcher's executable lies.
    pub program_dir: Option<PathBuf>,
}

impl Surroundings {
    pub(super) fn look() -> Self {
        Self {
            cuda_visible_devices: std::env::var("CUDA_VISIBLE_DEVICES").ok(),
            nvidia_visible_devices: std::env::var("NVIDIA_VISIBLE_DEVICES").ok(),
            num_driver_gpus: count_entries(Path::new("/proc/driver/nvidia/gpus")),
            temp_dir: std::env::temp_dir(),
            program_dir: std::env::current_exe()
                .ok()
                .and_then(|path| path.parent().map(Path::to_path_buf)),
        }
    }
}

fn count_entries(dir: &Path) -> usize {
    std::fs::read_dir(dir).map_or(0, |entries| entries.filter_map(Result::ok).count())
}

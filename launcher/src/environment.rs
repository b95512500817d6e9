//! What `--env` prints: what somebody who is asked for help wants to know about the machine.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

const NVIDIA_SMI_DEADLINE: Duration = Duration::from_secs(10);

/// Several lines.
pub async fn describe() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "Runtime environment:\nVersion: {}\nTarget: {}-{}\nCores: {cores}\nnvidia-smi:\n{}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        std::env::consts::OS,
        nvidia_smi().await.unwrap_or_else(|| "N/A".to_owned()),
    )
}

async fn nvidia_smi() -> Option<String> {
    let output = Command::new("nvidia-smi")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(NVIDIA_SMI_DEADLINE, output).await.ok()?.ok()?;
    output.status.success().then(|| {
        String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned()
    })
}

//! What operators see: logs on standard error, metrics for Prometheus. Nothing here may ever hold up serving.

mod logging;
mod metrics;

pub use logging::init_logging;
pub use metrics::{Buckets, MetricsHandle, build_recorder};

//! The Prometheus recorder and TGI's histogram buckets. The recorder is installed once the limits are known, because TGI's
//! buckets of token counts depend on them; until then there is nothing to count and the page is empty.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

/// Between two rounds in which the recorder folds the samples that no scrape has folded.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Renders the metrics page. A process has one, because a process has one recorder. Cheap to clone.
#[derive(Clone, Default)]
pub struct MetricsHandle {
    recorder: Arc<Mutex<Option<PrometheusHandle>>>,
}

/// The limits that shape buckets.
#[derive(Clone, Copy, Debug)]
pub struct Buckets {
    pub max_input_tokens: usize,
    pub max_total_tokens: usize,
}

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error(transparent)]
    Buckets(#[from] BuildError),
    #[error("the process has a recorder already")]
    Occupied(#[from] metrics::SetRecorderError<PrometheusRecorder>),
}

impl MetricsHandle {
    /// Installs the process's recorder, the first time. Metrics that were made before are lost, so it comes before whoever makes
    /// them.
    pub fn install(&self, buckets: Buckets) -> Result<(), InstallError> {
        let mut recorder = self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        if recorder.is_none() {
            let new = build_recorder(buckets)?;
            *recorder = Some(new.handle());
            metrics::set_global_recorder(new)?;
        }
        Ok(())
    }

    /// The page in Prometheus' text format.
    pub fn render(&self) -> String {
        self.recorder()
            .map(|recorder| recorder.render())
            .unwrap_or_default()
    }

    /// Keeps the memory of a process that nobody scrapes from growing. Never returns.
    pub async fn upkeep(self) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(UPKEEP_INTERVAL).await;
            if let Some(recorder) = self.recorder() {
                recorder.run_upkeep();
            }
        }
    }

    fn recorder(&self) -> Option<PrometheusHandle> {
        let recorder = self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        recorder.clone()
    }
}

/// A recorder with TGI's buckets, for `install` and for tests, which have one each.
pub fn build_recorder(buckets: Buckets) -> Result<PrometheusRecorder, BuildError> {
    let full = |name: &str| Matcher::Full(name.to_string());
    let max_input_tokens = hundredths(buckets.max_input_tokens);
    let max_total_tokens = hundredths(buckets.max_total_tokens);
    let batch_sizes: Vec<f64> = (1..=1024).map(f64::from).collect();
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("duration".to_string()), &durations())?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_string()), &durations())?
        .set_buckets_for_metric(full("tgi_request_input_length"), &max_input_tokens)?
        .set_buckets_for_metric(full("tgi_request_max_new_tokens"), &max_total_tokens)?
        .set_buckets_for_metric(full("tgi_request_generated_tokens"), &max_total_tokens)?
        .set_buckets_for_metric(full("tgi_batch_next_size"), &batch_sizes)?;
    Ok(builder.build_recorder())
}

/// From 0.15 ms to 146 s, each half as much again.
fn durations() -> Vec<f64> {
    let mut bound = 1e-4;
    let mut next = || {
        bound *= 1.5;
        bound
    };
    (0..35).map(|_| next()).collect()
}

/// A hundred equal steps up to `max`.
fn hundredths(max: usize) -> Vec<f64> {
    let step = max as f64 / 100.0;
    (1..=100).map(|n| step * f64::from(n)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page of a recorder of our own, after `record`.
    fn page(record: impl FnOnce()) -> String {
        let limits = Buckets {
            max_input_tokens: 512,
            max_total_tokens: 768,
        };
        let recorder = build_recorder(limits).unwrap();
        metrics::with_local_recorder(&recorder, record);
        recorder.handle().render()
    }

    #[test]
    fn buckets_are_those_that_tgi_was_recorded_with() {
        let page = page(|| {
            metrics::histogram!("tgi_request_duration").record(1.0);
            metrics::histogram!("tgi_request_input_length").record(1.0);
            metrics::histogram!("tgi_request_generated_tokens").record(1.0);
            metrics::histogram!("tgi_batch_next_size").record(1.0);
        });
        for line in [
            "tgi_request_duration_bucket{le=\"0.00015000000000000001\"} 0",
            "tgi_request_duration_bucket{le=\"145.61096060497135\"} 1",
            "tgi_request_input_length_bucket{le=\"5.12\"} 1",
            "tgi_request_input_length_bucket{le=\"512\"} 1",
            "tgi_request_generated_tokens_bucket{le=\"168.95999999999998\"} 1",
            "tgi_request_generated_tokens_bucket{le=\"768\"} 1",
            "tgi_batch_next_size_bucket{le=\"1024\"} 1",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is missing");
        }
    }

    #[test]
    fn a_series_without_samples_is_on_the_page() {
        let page = page(|| {
            let _ = metrics::histogram!("tgi_batch_forward_duration", "method" => "decode");
            let _ = metrics::counter!("text_gen_preemptions_total");
            let _ = metrics::gauge!("tgi_queue_size");
        });
        for line in [
            "tgi_batch_forward_duration_count{method=\"decode\"} 0",
            "text_gen_preemptions_total 0",
            "tgi_queue_size 0",
        ] {
            assert!(
                page.lines().any(|found| found == line),
                "{line} is missing:\n{page}"
            );
        }
    }

    #[test]
    fn the_page_is_empty_until_the_limits_are_known() {
        assert_eq!(MetricsHandle::default().render(), "");
    }
}

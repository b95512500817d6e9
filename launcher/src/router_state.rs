//! How far the router is, read off its log lines: a line with the field `event`.

use serde_json::{Map, Value};
use tokio::sync::watch;

/// In the order in which they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouterState {
    Started,
    /// It holds the HTTP port.
    Listening,
    /// The model is loaded, and requests are served.
    Ready,
}

#[derive(Debug)]
pub struct RouterWatch {
    sender: watch::Sender<RouterState>,
    receiver: watch::Receiver<RouterState>,
}

impl RouterWatch {
    pub fn new() -> Self {
        let (sender, receiver) = watch::channel(RouterState::Started);
        Self { sender, receiver }
    }

    /// To be shown the fields of every line.
    pub fn observer(&self) -> impl FnMut(&Map<String, Value>) + Send + 'static {
        let sender = self.sender.clone();
        move |fields| {
            let reached = match fields.get("event").and_then(Value::as_str) {
                Some("listening") => RouterState::Listening,
                Some("ready") => RouterState::Ready,
                _ => return,
            };
            sender.send_if_modified(|state| {
                let is_news = reached > *state;
                *state = reached.max(*state);
                is_news
            });
        }
    }

    /// Waits until the router is this far. For ever if it never is; whoever waits watches the process too.
    pub async fn reached(&mut self, state: RouterState) {
        // The sender lives as long as this, so that waiting cannot fail.
        let _ = self.receiver.wait_for(|now| *now >= state).await;
    }
}

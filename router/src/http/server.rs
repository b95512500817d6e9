//! Accepts connections, as many as there may be, and closes them in order. An error of accepting (no file descriptor is left) is waited
//! out and never ends the server.

use std::pin::pin;

use axum::Router;
use axum::serve::Listener;
use tokio::net::TcpListener;
use tokio::select;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::connection::{self, ConnectionLimits};

/// Serves until `shutdown`, then until the requests that were begun are answered. Dropping it closes everything.
pub async fn serve(
    mut listener: TcpListener,
    router: Router,
    limits: ConnectionLimits,
    shutdown: impl Future<Output = ()>,
) {
    let (stop, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            (stream, _) = Listener::accept(&mut listener), if connections.len() < limits.max_connections => {
                connections.spawn(connection::serve(stream, router.clone(), limits, stopped.clone()));
            }
        }
    }
    drop(listener);
    stop.send_replace(true);
    while connections.join_next().await.is_some() {}
}

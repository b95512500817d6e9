//! Accepts connections, as many as there may be, and closes them in order. An error of accepting (no file descriptor is left) is waited
//! out and never ends the server.

use std::pin::pin;

use axum::Router;
use axum::serve::Listener;
use tokio::net::{TcpListener, TcpStream};
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
        let stream = select! {
            biased;
            () = &mut shutdown => break,
            stream = accept(&mut listener, &mut connections, limits.max_connections) => stream,
        };
        connections.spawn(connection::serve(
            stream,
            router.clone(),
            limits,
            stopped.clone(),
        ));
    }
    drop(listener);
    stop.send_replace(true);
    while connections.join_next().await.is_some() {}
}

/// The next connection, once there is room for it. Forgets those that end meanwhile.
async fn accept(
    listener: &mut TcpListener,
    connections: &mut JoinSet<()>,
    max_connections: usize,
) -> TcpStream {
    // One future for the whole wait: a connection that ends must not cut the pause after an error short.
    let mut accepting = pin!(Listener::accept(listener));
    loop {
        select! {
            biased;
            Some(_) = connections.join_next() => {}
            (stream, _) = &mut accepting, if connections.len() < max_connections => return stream,
        }
    }
}

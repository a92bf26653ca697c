//! A line between caller and replica that can go dead without being closed, as when a machine vanishes.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

pub(crate) struct Proxy {
    address: SocketAddr,
    is_frozen: watch::Sender<bool>,
}

impl Proxy {
    pub(crate) async fn to(replica: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (is_frozen, frozen) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((caller, _)) = listener.accept().await {
                let Ok(replica) = TcpStream::connect(replica).await else { continue };
                let (from_caller, to_caller) = caller.into_split();
                let (from_replica, to_replica) = replica.into_split();
                tokio::spawn(carry(from_caller, to_replica, frozen.clone()));
                tokio::spawn(carry(from_replica, to_caller, frozen.clone()));
            }
        });
        Self { address, is_frozen }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From here on nothing passes, and nothing is closed either.
    pub(crate) fn freeze(&self) {
        self.is_frozen.send_replace(true);
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut frozen: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => Some(read),
            _ = frozen.wait_for(|is_frozen| *is_frozen) => None,
        };
        match read {
            // Both ends are kept open for as long as the test runs.
            None => return std::future::pending().await,
            Some(Ok(0) | Err(_)) => return,
            Some(Ok(count)) => {
                if to.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

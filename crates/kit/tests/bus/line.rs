//! A way to Postgres on which connections can go dead without being closed, as when the machine at the other end vanishes.
//! Postgres sees them end; whoever is at this end sees nothing.

#![expect(clippy::disallowed_methods, reason = "it carries bytes beside the test, and ends with it")]

use std::str::FromStr as _;

use sqlx::postgres::PgConnectOptions;
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
};

pub(crate) struct Line {
    url: String,
    cuts: watch::Sender<u32>,
}

impl Line {
    /// To the database that `url` leads to.
    pub(crate) async fn to(url: &str) -> Self {
        let server = PgConnectOptions::from_str(url).expect("a URL");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (user, database) = (server.get_username(), server.get_database().expect("a database"));
        let url = format!("postgresql://{user}@127.0.0.1:{port}/{database}?sslmode=disable");
        let (cuts, cut) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (host, port) = (server.get_host().to_owned(), server.get_port());
                match server.get_socket() {
                    Some(dir) => {
                        let socket = UnixStream::connect(dir.join(format!(".s.PGSQL.{port}"))).await;
                        tokio::spawn(carry(client, socket.expect("a server"), cut.clone()));
                    }
                    None => {
                        let socket = TcpStream::connect((host, port)).await;
                        tokio::spawn(carry(client, socket.expect("a server"), cut.clone()));
                    }
                }
            }
        });
        Self { url, cuts }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Every connection that stands is dead from now on. Those that are made afterwards are not.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|count| *count += 1);
    }
}

async fn carry(mut client: TcpStream, mut server: impl AsyncRead + AsyncWrite + Unpin, mut cut: watch::Receiver<u32>) {
    cut.mark_unchanged();
    let is_cut = tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => false,
        _ = cut.changed() => true,
    };
    drop(server);
    if is_cut {
        // The client's end stays open for as long as the test runs, and says nothing.
        std::future::pending::<()>().await;
    }
    drop(client);
}

//! Certificates: whose are accepted, and what happens when they change.

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use kit::{Kind, tls::Tls};
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tokio_rustls::TlsConnector;

use crate::{
    certificates::{Ca, of, open},
    replica::{Replica, name, remote},
    soon,
};

/// Long enough for files that have changed to have been looked at.
const LOOKED: Duration = Duration::from_millis(2_500);

async fn serving(tls: &Tls) -> Replica {
    Replica::start_at("a", SocketAddr::from(([127, 0, 0, 1], 0)), Some(tls.clone())).await
}

/// Opens a connection by hand: the certificate that is shown, and what is heard first.
async fn connect(address: SocketAddr, config: Arc<ClientConfig>) -> (CertificateDer<'static>, std::io::Result<usize>) {
    let socket = TcpStream::connect(address).await.expect("it listens");
    let name = ServerName::try_from("localhost").expect("a name");
    let mut stream = TlsConnector::from(config).connect(name, socket).await.expect("its certificate is good");
    let shown = stream.get_ref().1.peer_certificates().expect("certificates")[0].clone().into_owned();
    let heard = soon("a word", stream.read(&mut [0; 1])).await;
    (shown, heard)
}

#[tokio::test]
async fn calls_go_through_mutual_tls() {
    let ca = Ca::new();
    let (_files, tls) = ca.tls();
    let replica = serving(&tls).await;
    let (_others, other) = ca.tls();
    let peer = remote(&[replica.url()], Some(other));
    assert_eq!(name(&peer).await.expect("an answer"), "a");
    let peer = remote(&[format!("https://localhost:{}", replica.address.port())], Some(tls));
    assert_eq!(name(&peer).await.expect("an answer"), "a");
}

#[tokio::test]
async fn a_caller_without_a_certificate_is_refused() {
    let ca = Ca::new();
    let (_files, tls) = ca.tls();
    let replica = serving(&tls).await;
    let (_, heard) = connect(replica.address, ca.trusting()).await;
    let refusal = heard.expect_err("a caller without a certificate was let in");
    assert!(refusal.to_string().contains("CertificateRequired"), "{refusal}");
    // A plain caller is not even understood.
    let plain = remote(&[format!("http://{}", replica.address)], None);
    assert_eq!(name(&plain).await.expect_err("it is not understood").kind(), Kind::Unavailable);
    assert_eq!(replica.seen.calls(), 0);
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_accepted_by_neither_end() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let (files, tls) = ours.tls();
    let (others, other) = theirs.tls();
    let replica = serving(&tls).await;
    let stranger = remote(&[replica.url()], Some(other));
    assert_eq!(name(&stranger).await.expect_err("it does not trust the server").kind(), Kind::Unavailable);
    // One that trusts our CA, and shows a certificate of its own.
    fs::copy(files.path().join("ca.pem"), others.path().join("ca.pem")).expect("a copy");
    let intruder = remote(&[replica.url()], Some(open(others.path(), true).expect("files that fit together")));
    assert_eq!(name(&intruder).await.expect_err("the server does not trust it").kind(), Kind::Unavailable);
    assert_eq!(replica.seen.calls(), 0);
}

#[tokio::test]
async fn a_certificate_for_another_name_is_not_accepted() {
    let ca = Ca::new();
    let (_files, tls) = ca.tls();
    let replica = serving(&tls).await;
    let url = format!("https://127.0.0.2:{}", replica.address.port());
    let elsewhere = SocketAddr::from(([127, 0, 0, 2], replica.address.port()));
    let _misnamed = Replica::start_at("misnamed", elsewhere, Some(tls.clone())).await;
    assert_eq!(name(&remote(&[url], Some(tls))).await.expect_err("the name is wrong").kind(), Kind::Unavailable);
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_without_a_restart_and_a_broken_one_never() {
    let ca = Ca::new();
    let (files, tls) = ca.tls();
    let replica = serving(&tls).await;
    let peer = remote(&[replica.url()], Some(tls));
    name(&peer).await.expect("an answer");
    let folder = files.path();
    let first = of(folder);
    // Without a CA, so that a caller by hand may look.
    let (shown, _) = connect(replica.address, ca.trusting()).await;
    assert_eq!(shown, first);

    ca.issue(folder);
    let second = of(folder);
    assert_ne!(first, second);
    soon("the new certificate", async {
        while connect(replica.address, ca.trusting()).await.0 != second {
            tokio::task::yield_now().await;
        }
    })
    .await;
    name(&peer).await.expect("a connection that stands is not touched");

    fs::write(folder.join("cert.pem"), "half a certifica").expect("a file");
    tokio::time::sleep(LOOKED).await;
    assert_eq!(connect(replica.address, ca.trusting()).await.0, second);
    let (_others, other) = ca.tls();
    assert_eq!(name(&remote(&[replica.url()], Some(other))).await.expect("an answer"), "a");
}

#[tokio::test]
async fn files_that_are_no_good_are_told_at_the_start() {
    let ca = Ca::new();
    let (files, _tls) = ca.tls();
    let (others, _other) = ca.tls();
    let folder = files.path();
    let told = |what: &str| {
        let fail = open(folder, true).expect_err(what);
        assert_eq!(fail.code(), "config.tls", "{what}");
        fail.message().to_owned()
    };
    fs::copy(others.path().join("key.pem"), folder.join("key.pem")).expect("a copy");
    assert!(told("another's key").contains("do not fit together"));
    fs::write(folder.join("ca.pem"), "").expect("a file");
    assert!(told("an empty CA").contains("ca.pem"));
    fs::remove_file(folder.join("cert.pem")).expect("it was there");
    assert!(told("no certificate").contains("cert.pem"));
    assert!(open(others.path(), false).is_ok(), "a CA is not needed");
}

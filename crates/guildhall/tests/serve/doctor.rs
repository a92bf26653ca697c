//! `guildhall doctor` before a real RabbitMQ: there, refusing us, and gone.

use crate::place::Place;

#[tokio::test(flavor = "multi_thread")]
async fn doctor_tells_a_broker_that_is_there_from_one_that_refuses_us_and_one_that_is_gone() {
    let place = Place::new().await;
    let broker = kit::testing::rabbitmq().await;
    let url = broker.amqp_url();
    let look = async |url: &str| {
        let (code, said) = place.run("doctor", &["doctor"], &[("amqp_url", url)]).await;
        let line = said.lines().find(|line| line.contains("RabbitMQ")).unwrap_or_else(|| panic!("no line: {said}"));
        (code, line.to_owned(), said)
    };

    let (code, line, said) = look(&url).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(line.starts_with("ok ") && line.ends_with("is connected to"), "{line}");

    let (user, host) = url.split_once('@').expect("a user");
    let (code, line, said) = look(&format!("{user}wrong@{host}")).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(line.starts_with("wrong "), "{line}");
    assert!(line.contains("ACCESS_REFUSED") && line.contains("check amqp_url"), "{line}");
    let password = user.rsplit(':').next().expect("a password");
    assert!(!said.contains(password), "a password was shown: {said}");

    broker.stop().await;
    let (code, line, said) = look(&url).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(line.starts_with("wrong ") && line.contains("refused") && line.contains("check amqp_url"), "{line}");
    assert!(!said.contains(password), "a password was shown: {said}");
}

//! The calls that an attempt makes to `jobs`: each shows the attempt's fencing token, and each is repeated while `jobs`
//! or `auth` is away, since all of them may be made twice. The supervision of the attempt bounds how long that goes on.

use std::{future::Future, time::Duration};

use kit::{
    Fail, Kind,
    grpc::{Call, Credential, MESSAGE_BYTES_MAX, Peer},
};
use proto::worker::{
    AddSiblingsRequest, AttemptFile, AttemptRef, CreateAttemptFileRequest, FanOutRequest, GetAttemptFileRequest,
    ListChildrenRequest, ListChildrenResponse, Sibling, attempts_client::AttemptsClient,
};
use tonic::{Request, Response, Status};

/// How long `jobs` may take to answer one call.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
const TRIES_MAX: u32 = 8;
const DELAY_FIRST: Duration = Duration::from_millis(100);
const DELAY_MAX: Duration = Duration::from_secs(5);

/// The way to `jobs` for one attempt.
#[derive(Debug)]
pub(crate) struct Calls {
    pub(crate) jobs: Peer,
    pub(crate) credential: Credential,
    pub(crate) attempt: AttemptRef,
    /// Of the request that submitted the job.
    pub(crate) request_id: String,
}

type Client = AttemptsClient<Peer>;

impl Calls {
    pub(crate) async fn get_file(&self, file_id: &str) -> Result<AttemptFile, Fail> {
        let message = GetAttemptFileRequest { attempt: Some(self.attempt.clone()), file_id: file_id.to_owned() };
        self.make(message, async |mut client: Client, request| client.get_file(request).await).await
    }

    /// A repeated call may reserve a second row; `jobs` removes what the attempt's result does not name.
    pub(crate) async fn create_file(&self, name: &str) -> Result<AttemptFile, Fail> {
        let message = CreateAttemptFileRequest { attempt: Some(self.attempt.clone()), name: name.to_owned() };
        self.make(message, async |mut client: Client, request| client.create_file(request).await).await
    }

    pub(crate) async fn fan_out(&self, mut message: FanOutRequest) -> Result<String, Fail> {
        message.attempt = Some(self.attempt.clone());
        let answer = self.make(message, async |mut client: Client, request| client.fan_out(request).await).await?;
        Ok(answer.batch_id)
    }

    pub(crate) async fn add_siblings(&self, jobs: Vec<Sibling>) -> Result<Vec<String>, Fail> {
        let message = AddSiblingsRequest { attempt: Some(self.attempt.clone()), jobs };
        let answer = self.make(message, async |mut client: Client, request| client.add_siblings(request).await).await?;
        Ok(answer.job_ids)
    }

    pub(crate) async fn list_children(
        &self,
        after_ordinal: Option<u32>,
        limit: u32,
    ) -> Result<ListChildrenResponse, Fail> {
        let message = ListChildrenRequest { attempt: Some(self.attempt.clone()), after_ordinal, limit };
        self.make(message, async |mut client: Client, request| client.list_children(request).await).await
    }

    async fn make<M, A, F>(&self, message: M, call: impl Fn(Client, Request<M>) -> F) -> Result<A, Fail>
    where
        M: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut delay = DELAY_FIRST;
        let mut tries = 1;
        loop {
            let fail = match self.try_once(message.clone(), &call).await {
                Ok(answer) => return Ok(answer),
                Err(fail) => fail,
            };
            let can_pass = match fail.kind() {
                Kind::Unavailable | Kind::Timeout | Kind::Limited => true,
                // A token may have ended on its way; a key that is no good fails at the exchange again.
                Kind::Unauthenticated if tries == 1 => {
                    self.credential.forget().await;
                    true
                }
                _ => false,
            };
            if !can_pass || tries == TRIES_MAX {
                return Err(fail);
            }
            tokio::time::sleep(fail.retry_after_hint().unwrap_or(delay).min(DELAY_MAX)).await;
            delay = (delay * 2).min(DELAY_MAX);
            tries += 1;
        }
    }

    async fn try_once<M, A, F>(&self, message: M, call: &impl Fn(Client, Request<M>) -> F) -> Result<A, Fail>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let context: Call = self.credential.call(&self.request_id).await?;
        let client = AttemptsClient::new(self.jobs.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        tokio::time::timeout(ANSWER_WITHIN, call(client, context.request_within(ANSWER_WITHIN, message)))
            .await
            .map_err(|_| Fail::new(Kind::Timeout, "timeout", "It took too long."))?
            .map(Response::into_inner)
            .map_err(Fail::from)
    }
}

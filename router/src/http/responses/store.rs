//! The responses of this process, so that they can be fetched, continued and cancelled. Bounded by number and by bytes; the oldest go
//! first, and nothing outlives the process. It owns the background runs too: they end with it.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::items::Item;
use super::object::{ResponseObject, Status};
use crate::types::Tenant;

/// Enough for the conversations of some hours, and small beside a model.
const MAX_RESPONSES: usize = 10_000;
const MAX_BYTES: usize = 64 << 20;

/// The store as one tenant sees it: what others keep is not there. Cheap to clone.
#[derive(Clone)]
pub struct ResponseStore {
    records: Arc<Mutex<Records>>,
    background: Arc<Mutex<JoinSet<()>>>,
    tenant: Tenant,
}

struct Records {
    by_id: HashMap<String, Record>,
    /// Ids, oldest first; those of deleted responses may still be here.
    order: VecDeque<String>,
    bytes: usize,
    max_responses: usize,
    max_bytes: usize,
}

struct Record {
    tenant: Tenant,
    response: ResponseObject,
    /// What this request gave.
    input: Vec<Arc<Item>>,
    /// What the model was shown: earlier turns, then `input`.
    conversation: Vec<Arc<Item>>,
    bytes: usize,
    /// Until the response has ended.
    cancel: Option<oneshot::Sender<()>>,
}

/// The place of a running response in the store. Dropping it before `finish` tells that its client left.
pub struct Tracked {
    records: Arc<Mutex<Records>>,
    id: String,
    finished: bool,
}

impl Default for ResponseStore {
    fn default() -> Self {
        Self::bounded(MAX_RESPONSES, MAX_BYTES)
    }
}

impl ResponseStore {
    fn bounded(max_responses: usize, max_bytes: usize) -> Self {
        Self {
            records: Arc::new(Mutex::new(Records {
                by_id: HashMap::new(),
                order: VecDeque::new(),
                bytes: 0,
                max_responses,
                max_bytes,
            })),
            background: Arc::default(),
            tenant: Tenant::default(),
        }
    }

    /// The same store for a tenant.
    pub fn of(&self, tenant: &Tenant) -> Self {
        Self {
            tenant: tenant.clone(),
            ..self.clone()
        }
    }

    /// Stores a response that begins. The receiver hears when it is cancelled; its sender is gone when it was deleted or forgotten.
    pub fn begin(
        &self,
        response: ResponseObject,
        input: Vec<Arc<Item>>,
        conversation: Vec<Arc<Item>>,
    ) -> (Tracked, oneshot::Receiver<()>) {
        let (cancel, cancelled) = oneshot::channel();
        let tracked = Tracked {
            records: self.records.clone(),
            id: response.id.clone(),
            finished: false,
        };
        let items: usize = conversation.iter().map(|item| item.bytes()).sum();
        let record = Record {
            tenant: self.tenant.clone(),
            bytes: items + response.bytes(),
            response,
            input,
            conversation,
            cancel: Some(cancel),
        };
        lock(&self.records).insert(record);
        (tracked, cancelled)
    }

    /// Runs something that nobody waits for, until it ends or the store does.
    pub fn spawn(&self, run: impl Future<Output = ()> + Send + 'static) {
        let mut background = self
            .background
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while background.try_join_next().is_some() {}
        background.spawn(run);
    }

    pub fn get(&self, id: &str) -> Option<ResponseObject> {
        let records = lock(&self.records);
        Some(records.of(&self.tenant, id)?.response.clone())
    }

    pub fn input(&self, id: &str) -> Option<Vec<Arc<Item>>> {
        let records = lock(&self.records);
        Some(records.of(&self.tenant, id)?.input.clone())
    }

    /// What was said up to and including that response.
    pub fn conversation(&self, id: &str) -> Option<Vec<Arc<Item>>> {
        let records = lock(&self.records);
        let record = records.of(&self.tenant, id)?;
        let mut items = record.conversation.clone();
        items.extend(record.response.output.iter().cloned().map(Arc::new));
        Some(items)
    }

    pub fn delete(&self, id: &str) -> bool {
        let mut records = lock(&self.records);
        records.of(&self.tenant, id).is_some() && records.remove(id)
    }

    /// Ends a response that runs; one that has ended stays as it is.
    pub fn cancel(&self, id: &str) -> Option<ResponseObject> {
        let mut records = lock(&self.records);
        records.of(&self.tenant, id)?;
        let record = records.by_id.get_mut(id)?;
        if let Some(cancel) = record.cancel.take() {
            record.response.status = Status::Cancelled;
            // The run may have ended a moment ago.
            let _ = cancel.send(());
        }
        Some(record.response.clone())
    }
}

impl Records {
    fn of(&self, tenant: &Tenant, id: &str) -> Option<&Record> {
        let record = self.by_id.get(id)?;
        (record.tenant == *tenant).then_some(record)
    }

    fn insert(&mut self, record: Record) {
        self.bytes += record.bytes;
        self.order.push_back(record.response.id.clone());
        self.by_id.insert(record.response.id.clone(), record);
        self.shrink();
    }

    fn remove(&mut self, id: &str) -> bool {
        let Some(record) = self.by_id.remove(id) else {
            return false;
        };
        self.bytes -= record.bytes;
        // Otherwise the ids of deleted responses would pile up.
        if self.order.len() > 2 * self.by_id.len() + 16 {
            self.order.retain(|id| self.by_id.contains_key(id));
        }
        true
    }

    fn shrink(&mut self) {
        while self.by_id.len() > self.max_responses || self.bytes > self.max_bytes {
            let Some(oldest) = self.order.pop_front() else {
                return;
            };
            self.remove(&oldest);
        }
    }

    /// Replaces what is known of a response that is still stored.
    fn update(&mut self, response: ResponseObject) {
        let Some(record) = self.by_id.get_mut(&response.id) else {
            return;
        };
        let items: usize = record.conversation.iter().map(|item| item.bytes()).sum();
        let bytes = items + response.bytes();
        self.bytes = self.bytes - record.bytes + bytes;
        record.bytes = bytes;
        if !response.is_running() {
            record.cancel = None;
        }
        record.response = response;
        self.shrink();
    }
}

impl Tracked {
    pub fn started(&self) {
        let mut records = lock(&self.records);
        if let Some(record) = records.by_id.get_mut(&self.id)
            && record.response.status == Status::Queued
        {
            record.response.status = Status::InProgress;
        }
    }

    pub fn finish(&mut self, response: ResponseObject) {
        self.finished = true;
        lock(&self.records).update(response);
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let mut records = lock(&self.records);
        if let Some(record) = records.by_id.get_mut(&self.id) {
            record.response.status = Status::Cancelled;
            record.cancel = None;
        }
    }
}

fn lock(records: &Mutex<Records>) -> MutexGuard<'_, Records> {
    records.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

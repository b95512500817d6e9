use super::super::body::ResponseBody;
use super::*;

fn response(text: &str) -> (ResponseObject, Vec<Arc<Item>>) {
    let body: ResponseBody = serde_json::from_value(serde_json::json!({"input": text})).unwrap();
    let plan = body.plan(Vec::new()).unwrap();
    (ResponseObject::new("m".into(), plan.asked), plan.input)
}

fn begin(store: &ResponseStore, text: &str) -> (String, Tracked, oneshot::Receiver<()>) {
    let (response, input) = response(text);
    let id = response.id.clone();
    let (tracked, cancelled) = store.begin(response, input.clone(), input);
    (id, tracked, cancelled)
}

fn finish(store: &ResponseStore, id: &str, mut tracked: Tracked) {
    let mut response = store.get(id).unwrap();
    response.status = Status::Completed;
    tracked.finish(response);
}

fn bytes(store: &ResponseStore) -> usize {
    lock(&store.records).bytes
}

#[test]
fn the_oldest_go_first_when_there_are_too_many() {
    let store = ResponseStore::bounded(2, usize::MAX);
    let ids: Vec<String> = ["a", "b", "c"]
        .map(|text| {
            let (id, tracked, _) = begin(&store, text);
            finish(&store, &id, tracked);
            id
        })
        .to_vec();
    assert!(store.get(&ids[0]).is_none());
    assert!(store.get(&ids[1]).is_some() && store.get(&ids[2]).is_some());
}

#[test]
fn bytes_are_bounded_and_given_back() {
    let store = ResponseStore::bounded(1000, 20_000);
    let mut ids = Vec::new();
    for _ in 0..20 {
        let (id, tracked, _) = begin(&store, &"x".repeat(3_000));
        finish(&store, &id, tracked);
        assert!(bytes(&store) <= 20_000);
        ids.push(id);
    }
    assert!(store.get(&ids[19]).is_some());
    assert!(store.get(&ids[10]).is_none());
    for id in &ids {
        store.delete(id);
    }
    assert_eq!(bytes(&store), 0);
}

#[test]
fn what_is_larger_than_the_store_is_not_kept() {
    let store = ResponseStore::bounded(10, 2_000);
    let (id, _tracked, _) = begin(&store, &"x".repeat(3_000));
    assert!(store.get(&id).is_none());
    assert_eq!(bytes(&store), 0);
}

#[test]
fn ids_of_deleted_responses_do_not_pile_up() {
    let store = ResponseStore::default();
    for _ in 0..1000 {
        let (id, tracked, _) = begin(&store, "a");
        finish(&store, &id, tracked);
        assert!(store.delete(&id));
        assert!(!store.delete(&id));
    }
    assert!(lock(&store.records).order.len() < 50);
}

#[test]
fn cancelling_tells_the_run_once_and_an_ended_response_stays() {
    let store = ResponseStore::default();
    let (id, tracked, mut cancelled) = begin(&store, "a");
    assert_eq!(store.cancel(&id).unwrap().status, Status::Cancelled);
    assert_eq!(cancelled.try_recv(), Ok(()));
    assert_eq!(store.cancel(&id).unwrap().status, Status::Cancelled);
    drop(tracked);
    let (id, tracked, _) = begin(&store, "b");
    finish(&store, &id, tracked);
    assert_eq!(store.cancel(&id).unwrap().status, Status::Completed);
    assert!(store.cancel("resp_unknown").is_none());
}

#[test]
fn a_response_whose_client_left_is_cancelled() {
    let store = ResponseStore::default();
    let (id, tracked, _cancelled) = begin(&store, "a");
    drop(tracked);
    assert_eq!(store.get(&id).unwrap().status, Status::Cancelled);
}

#[test]
fn what_one_tenant_keeps_is_not_there_for_another() {
    let store = ResponseStore::default();
    let tenant = |cache_salt| Tenant {
        name: Some("same".into()),
        cache_salt,
    };
    let (mine, theirs) = (store.of(&tenant(1)), store.of(&tenant(2)));
    let (id, tracked, mut cancelled) = begin(&mine, "a");
    assert!(theirs.get(&id).is_none() && theirs.input(&id).is_none());
    assert!(theirs.conversation(&id).is_none() && theirs.cancel(&id).is_none());
    assert!(!theirs.delete(&id) && store.get(&id).is_none());
    assert!(cancelled.try_recv().is_err());
    finish(&mine, &id, tracked);
    assert!(mine.delete(&id));
}

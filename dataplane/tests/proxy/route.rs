//! Connections of one service, split over others.

use std::collections::HashMap;

use super::*;

/// `web` calls `store`, whose connections are split over the services of `backends`, each with a sidecar and an
/// application of its own; what is said to exist only by the route has neither.
struct Split {
    scene: Scene,
    _backends: Vec<Proxy>,
}

async fn split(existing: &[&'static str], weights: &[(&str, u32)]) -> Split {
    let scene = scene().await;
    let trust = scene.zone.trust();
    let mut backends = Vec::new();
    let mut documents = Vec::new();
    for name in existing {
        let (port, application) = (free_port(), echo(name).await);
        let mut into = inbound(name, port, application, allow_any());
        into.name = (*name).to_owned();
        scene.zone.change(|world| {
            let proxy = proxy(name, vec![into], vec![]);
            world
                .documents
                .insert(format!("{name}-1"), vec![trust.clone(), proxy]);
            let there = endpoints(name, &[port]);
            world.endpoints.insert(there.key.clone(), there);
        });
        let sidecar = Proxy::start(&scene.zone, &scene.dir, Role::Sidecar, &format!("{name}-1"));
        sidecar.ready().await;
        backends.push(sidecar);
        documents.push(service(name));
    }
    let before = revision(&scene).await;
    scene.zone.change(|world| {
        let web = world.documents.get_mut("web-1").unwrap();
        web[1] = split_service("store", weights);
        web.extend(documents);
    });
    eventually("the route is in force", async || {
        revision(&scene).await > before
    })
    .await;
    Split {
        scene,
        _backends: backends,
    }
}

/// The newest revision that `web` has.
async fn revision(scene: &Scene) -> u64 {
    scene.web.config().await["revision"].as_u64().unwrap()
}

/// Who answers so many calls, and how often nobody does.
async fn calls(port: u16, count: usize) -> HashMap<String, usize> {
    let mut answers = HashMap::new();
    for _ in 0..count {
        let who = call(port).await.unwrap_or_else(|| "nobody".to_owned());
        *answers.entry(who).or_default() += 1;
    }
    answers
}

#[tokio::test]
async fn connections_are_split_exactly_by_weight_and_none_goes_where_the_weight_is_zero() {
    let backends = ["blue", "green", "grey"];
    let weights = [("blue", 60), ("green", 40), ("grey", 0), ("store", 0)];
    let split = split(&backends, &weights).await;
    let answers = calls(split.scene.outbound, 20).await;
    assert_eq!(answers.get("blue"), Some(&12), "{answers:?}");
    assert_eq!(answers.get("green"), Some(&8), "{answers:?}");
    assert_eq!(answers.len(), 2, "{answers:?}");
    // What is counted is where they went.
    let web = &split.scene.web;
    web.counted(&["destination=\"green\"", "direction=\"outbound\""])
        .await;
}

#[tokio::test]
async fn a_route_may_send_a_share_to_the_called_service_itself() {
    let split = split(&["blue"], &[("store", 1), ("blue", 1)]).await;
    let answers = calls(split.scene.outbound, 8).await;
    assert_eq!(answers.get("store"), Some(&4), "{answers:?}");
    assert_eq!(answers.get("blue"), Some(&4), "{answers:?}");
}

#[tokio::test]
async fn the_share_of_a_backend_that_does_not_exist_fails_and_goes_nowhere_else() {
    let split = split(&["blue"], &[("blue", 1), ("missing", 1)]).await;
    let answers = calls(split.scene.outbound, 8).await;
    assert_eq!(answers.get("blue"), Some(&4), "{answers:?}");
    assert_eq!(answers.get("nobody"), Some(&4), "{answers:?}");
    let web = &split.scene.web;
    web.counted(&["reason=\"no_backend\"", "outcome=\"failed\""])
        .await;
}

#[tokio::test]
async fn a_backend_without_endpoints_keeps_its_share_too() {
    let split = split(&["blue"], &[("blue", 1), ("store", 1)]).await;
    split.scene.zone.change(|world| {
        let nowhere = endpoints("store", &[]);
        world.endpoints.insert(nowhere.key.clone(), nowhere);
    });
    let web = &split.scene.web;
    eventually("store has no endpoint", async || {
        let config = web.config().await;
        config["endpoints"]["service/store:80"] == serde_json::json!([])
    })
    .await;
    let answers = calls(split.scene.outbound, 8).await;
    assert_eq!(answers.get("blue"), Some(&4), "{answers:?}");
    assert_eq!(answers.get("nobody"), Some(&4), "{answers:?}");
    web.counted(&["reason=\"no_endpoints\"", "destination=\"store\""])
        .await;
}

#[tokio::test]
async fn a_route_without_weights_lets_nothing_through() {
    let split = split(&["blue"], &[("blue", 0)]).await;
    let answers = calls(split.scene.outbound, 4).await;
    assert_eq!(answers.get("nobody"), Some(&4), "{answers:?}");
}

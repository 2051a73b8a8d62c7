//! Requests are shown to the zone as they end, where it asks, and not longer than it does.

use mesh_proto::{
    discovery::{answer, question},
    tap::{Caught, Direction, Filter, Request, StatusRange, Tap},
};

use super::{application::application, wire_client::Wire, *};

fn tap(id: &str, filter: Filter) -> Tap {
    Tap {
        id: id.into(),
        filter: Some(filter),
        rate_max: 100,
        lease_ms: 30_000,
        with_query: false,
    }
}

impl Scene {
    async fn caught(&self, dataplane: &str, tap: &Tap) -> Caught {
        match self
            .zone
            .ask(dataplane, question::What::Tap(tap.clone()))
            .await
        {
            Some(answer::What::Caught(caught)) => caught,
            other => panic!("{other:?}"),
        }
    }

    /// What `count` requests look like that a dataplane catches.
    async fn catch(&self, dataplane: &str, tap: &Tap, count: usize) -> Vec<Request> {
        let mut caught = Vec::new();
        soon("so many are caught", async {
            while caught.len() < count {
                caught.extend(self.caught(dataplane, tap).await.requests);
            }
        })
        .await;
        caught
    }

    async fn ask(&self, request: &str) -> u16 {
        let mut wire = Wire::new(self.connect().await);
        let method = request.split(' ').next().unwrap();
        let head = format!("{request} HTTP/1.1\r\nHost: shop\r\nauthorization: secret\r\n\r\n");
        wire.send(head).await.unwrap();
        soon("an answer", wire.answer(method))
            .await
            .unwrap()
            .status()
    }
}

#[tokio::test]
async fn a_request_is_shown_by_both_sidecars_as_each_saw_it() {
    let (application, _) = application().await;
    let scene = scene(Protocol::Http, application).await;
    let all = tap("all", Filter::default());
    let run = scene.caught("web-1", &all).await.run;
    scene.caught("store-1", &all).await;
    assert_eq!(scene.ask("GET /items/7?token=secret").await, 200);
    let out = scene.catch("web-1", &all, 1).await.remove(0);
    let into = scene.catch("store-1", &all, 1).await.remove(0);
    let (web, store) = (identity("web"), identity("store"));
    for seen in [&out, &into] {
        let (source, destination) = (seen.source.as_ref(), seen.destination.as_ref());
        let (source, destination) = (source.unwrap(), destination.unwrap());
        assert_eq!((&*source.service, &*destination.service), ("web", "store"));
        assert_eq!((&*source.zone, &*destination.zone), ("east", "east"));
        assert_eq!((&source.spiffe_id, &destination.spiffe_id), (&web, &store));
        assert_eq!((&*seen.method, &*seen.path), ("GET", "/items/7"));
        assert_eq!(
            (seen.status, seen.grpc_status, seen.attempts),
            (200, None, 1)
        );
        assert_eq!((&*seen.said_by, &*seen.reason), ("upstream", ""));
        let (connected, first) = (seen.connect_us.unwrap(), seen.first_byte_us.unwrap());
        assert!(connected <= first && first <= seen.duration_us, "{seen:?}");
        assert!(seen.began_us > 1_700_000_000_000_000 && seen.bytes_received > 0);
        // Neither headers nor queries.
        assert!(!format!("{seen:?}").contains("secret"), "{seen:?}");
    }
    assert_eq!(out.direction(), Direction::Outbound);
    assert_eq!(into.direction(), Direction::Inbound);
    assert_eq!(out.request_id.len(), 32);
    assert_eq!(out.request_id, into.request_id);
    assert!(out.duration_us >= into.duration_us, "{out:?} {into:?}");
    // It was one, and stays the same tap.
    let after = scene.caught("web-1", &all).await;
    assert_eq!((after.matched, after.requests.len()), (1, 0));
    assert_eq!(after.run, run);
    // Ended, it catches nothing more; begun again, it is another run.
    scene
        .caught(
            "web-1",
            &Tap {
                lease_ms: 0,
                ..all.clone()
            },
        )
        .await;
    assert_eq!(scene.ask("GET /").await, 200);
    let anew = scene.caught("web-1", &all).await;
    assert_eq!((anew.matched, anew.requests.len()), (0, 0));
    assert_ne!(anew.run, run);
}

#[tokio::test]
async fn only_what_is_looked_for_is_shown_and_what_is_too_much_is_counted() {
    let (application, _) = application().await;
    let scene = scene(Protocol::Http, application).await;
    let posts = tap(
        "posts",
        Filter {
            method: "POST".into(),
            ..Filter::default()
        },
    );
    let below = tap(
        "below",
        Filter {
            path: "/below".into(),
            ..Filter::default()
        },
    );
    let below = Tap {
        with_query: true,
        ..below
    };
    let denied = StatusRange {
        first: 403,
        last: 403,
    };
    let denied = Filter {
        statuses: vec![denied],
        failed: true,
        ..Filter::default()
    };
    let denied = tap("denied", denied);
    let few = Tap {
        rate_max: 2,
        ..tap("few", Filter::default())
    };
    for tap in [&posts, &below, &denied, &few] {
        assert_eq!(scene.caught("web-1", tap).await.refused, "");
    }
    for request in ["GET /below/a?b=c", "POST /x", "GET /y", "GET /z"] {
        assert_eq!(scene.ask(request).await, 200);
    }
    let documents = store_document(
        scene.protocol,
        scene.inbound,
        application,
        wire::Permissions::default(),
    );
    scene.put(&scene.store, "store-1", 1, vec![documents]).await;
    assert_eq!(scene.ask("POST /x").await, 403);
    let paths =
        |caught: Vec<Request>| -> Vec<String> { caught.into_iter().map(|r| r.path).collect() };
    assert_eq!(paths(scene.catch("web-1", &posts, 2).await), ["/x", "/x"]);
    assert_eq!(
        paths(scene.catch("web-1", &below, 1).await),
        ["/below/a?b=c"]
    );
    let refused = scene.catch("web-1", &denied, 1).await.remove(0);
    assert_eq!(
        (&*refused.said_by, &*refused.reason),
        ("policy", "permission_denied")
    );
    let few = scene.caught("web-1", &few).await;
    assert_eq!(few.matched, 5);
    assert!(!few.requests.is_empty());
}

#[tokio::test]
async fn what_is_refused_before_it_is_a_request_is_shown_without_method_and_path() {
    let (application, seen) = application().await;
    let scene = scene(Protocol::Http, application).await;
    let all = tap("all", Filter::default());
    let gets = tap(
        "gets",
        Filter {
            method: "GET".into(),
            ..Filter::default()
        },
    );
    let failed = tap(
        "failed",
        Filter {
            service: "store".into(),
            failed: true,
            ..Filter::default()
        },
    );
    for tap in [&all, &gets, &failed] {
        scene.caught("web-1", tap).await;
    }
    scene.caught("store-1", &all).await;
    let two_hosts = "GET /items HTTP/1.1\r\nHost: shop\r\nHost: shop\r\n\r\n".to_owned();
    let large = format!(
        "GET /items HTTP/1.1\r\nHost: shop\r\nlarge: {}\r\n\r\n",
        "a".repeat(200 << 10)
    );
    let mut caught = Vec::new();
    for (head, status) in [(&two_hosts, 400), (&large, 431)] {
        let mut wire = Wire::new(scene.connect().await);
        // The answer may come before all of it is read.
        let _ = wire.send(head.clone()).await;
        let answer = soon("an answer", wire.answer("GET")).await.unwrap();
        assert_eq!(answer.status(), status);
        caught.extend(scene.catch("web-1", &all, 1).await);
        assert_eq!(scene.catch("web-1", &failed, 1).await.len(), 1);
    }
    // Beside the called application it is known who it was.
    let mut wire = Wire::new(scene.peer().connect().await);
    wire.send(two_hosts).await.unwrap();
    caught.extend(scene.catch("store-1", &all, 1).await);
    let (web, store) = (identity("web"), identity("store"));
    for (seen, (status, source_id, destination_id)) in
        caught
            .iter()
            .zip([(400, &web, ""), (431, &web, ""), (400, &web, &*store)])
    {
        assert_eq!((&*seen.method, &*seen.path, seen.status), ("", "", status));
        let why = (&*seen.said_by, &*seen.reason);
        assert_eq!(why, ("client", "bad_request"), "{seen:?}");
        assert_ne!(seen.detail, "");
        let (source, destination) = (seen.source.as_ref(), seen.destination.as_ref());
        let (source, destination) = (source.unwrap(), destination.unwrap());
        assert_eq!((&*source.service, &*destination.service), ("web", "store"));
        assert_eq!(
            (&source.spiffe_id, &*destination.spiffe_id),
            (source_id, destination_id)
        );
        assert!(seen.began_us > 1_700_000_000_000_000, "{seen:?}");
        assert!(!format!("{seen:?}").contains("items"), "{seen:?}");
    }
    let gets = scene.caught("web-1", &gets).await;
    assert_eq!((gets.matched, gets.requests.len()), (0, 0));
    assert_eq!(seen.len(), 0);
}

//! gRPC, by tonic at both ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mesh_proto::{
    discovery::{
        Heartbeat, ToDataplane, ToZone,
        discovery_client::DiscoveryClient,
        discovery_server::{Discovery, DiscoveryServer},
        to_dataplane::Message as Down,
        to_zone::Message as Up,
    },
    zone::{
        JoinNodeRequest, JoinNodeResponse, JoinZoneRequest, JoinZoneResponse,
        join_client::JoinClient,
        join_server::{Join, JoinServer},
    },
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_check_response, health_client::HealthClient},
    server::HealthReporter,
};

use super::*;

/// Two services of the mesh's own, since they are there: here they are somebody's application. Counts the calls that were given up
/// while it had not answered.
#[derive(Clone, Default)]
struct Application(Arc<AtomicUsize>);

/// Counts where it is dropped.
struct GivenUp(Arc<AtomicUsize>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tonic::async_trait]
impl Join for Application {
    /// Says back what it was told, and how long it may take.
    async fn join_zone(
        &self,
        request: Request<JoinZoneRequest>,
    ) -> Result<Response<JoinZoneResponse>, Status> {
        let deadline = request.metadata().get("grpc-timeout");
        let deadline = deadline
            .map_or("none", |value| value.to_str().unwrap())
            .to_owned();
        let request = request.into_inner();
        if request.token == "hang" {
            let _given_up = GivenUp(self.0.clone());
            return std::future::pending().await;
        }
        let mut response = Response::new(JoinZoneResponse::default());
        let seen = format!("{} {deadline}", request.token);
        response
            .metadata_mut()
            .insert("x-seen", seen.parse().unwrap());
        Ok(response)
    }

    /// Fails without a message: its answer is trailers and nothing else.
    async fn join_node(
        &self,
        _: Request<JoinNodeRequest>,
    ) -> Result<Response<JoinNodeResponse>, Status> {
        let mut status = Status::failed_precondition("not today: 100% ü");
        status
            .metadata_mut()
            .insert("x-detail", "because".parse().unwrap());
        Err(status)
    }
}

#[tonic::async_trait]
impl Discovery for Application {
    type StreamStream = ReceiverStream<Result<ToDataplane, Status>>;

    /// Answers each number with the next; 0 ends with an error.
    async fn stream(
        &self,
        request: Request<Streaming<ToZone>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let mut up = request.into_inner();
        let (down, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Ok(Some(message)) = up.message().await {
                let Some(Up::Heartbeat(beat)) = message.message else {
                    return;
                };
                let answer = match beat.revision {
                    0 => Err(Status::data_loss("the end")),
                    n => Ok(ToDataplane {
                        message: Some(Down::Heartbeat(Heartbeat {
                            revision: n + 1,
                            ..Heartbeat::default()
                        })),
                    }),
                };
                if down.send(answer).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

async fn application() -> u16 {
    serve(Application::default()).await.0
}

/// An application, and who says whether it is healthy.
async fn serve(application: Application) -> (u16, HealthReporter) {
    let (reporter, health) = tonic_health::server::health_reporter();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tonic::transport::Server::builder()
        .add_service(JoinServer::new(application.clone()))
        .add_service(DiscoveryServer::new(application))
        .add_service(health)
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    (port, reporter)
}

async fn channel(port: u16) -> Channel {
    let endpoint = Channel::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    endpoint.connect().await.unwrap()
}

fn named(word: &str) -> JoinZoneRequest {
    JoinZoneRequest {
        token: word.into(),
        ..JoinZoneRequest::default()
    }
}

#[tokio::test]
async fn calls_their_failures_and_deadlines_pass() {
    let scene = scene(Protocol::Grpc, application().await).await;
    let mut client = JoinClient::new(channel(scene.outbound).await);
    let answer = soon("an answer", client.join_zone(named("east")))
        .await
        .unwrap();
    assert_eq!(answer.metadata().get("x-seen").unwrap(), "east none");

    let mut request = Request::new(named("west"));
    request.set_timeout(Duration::from_secs(3600));
    let answer = soon("an answer", client.join_zone(request)).await.unwrap();
    // As the client wrote it.
    assert_eq!(answer.metadata().get("x-seen").unwrap(), "west 3600000m");

    let failed = soon("an answer", client.join_node(JoinNodeRequest::default()))
        .await
        .unwrap_err();
    assert_eq!(
        (failed.code(), failed.message()),
        (Code::FailedPrecondition, "not today: 100% ü")
    );
    assert_eq!(failed.metadata().get("x-detail").unwrap(), "because");
    let words = [
        "isthmus_dataplane_requests",
        "grpc_status=\"9\"",
        "status=\"200\"",
        "reason=\"\"",
    ];
    scene.web.counted(&words).await;
    scene.store.counted(&words).await;

    let mut request = Request::new(named("hang"));
    request.set_timeout(Duration::from_millis(200));
    let failed = soon("an answer", client.join_zone(request))
        .await
        .unwrap_err();
    assert!(
        matches!(failed.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{failed:?}"
    );
}

#[tokio::test]
async fn each_message_of_a_stream_passes_at_once_both_ways() {
    let scene = scene(Protocol::Grpc, application().await).await;
    let mut client = DiscoveryClient::new(channel(scene.outbound).await);
    let (up, stream) = mpsc::channel(1);
    let said = async |n| {
        let beat = Heartbeat {
            revision: n,
            ..Heartbeat::default()
        };
        up.send(ToZone {
            message: Some(Up::Heartbeat(beat)),
        })
        .await
        .unwrap();
    };
    let answer = soon("an answer", client.stream(ReceiverStream::new(stream)))
        .await
        .unwrap();
    let mut down = answer.into_inner();
    for n in 1..200 {
        // The next is said only once this one has been answered.
        said(n).await;
        let message = soon("a message", down.message()).await.unwrap().unwrap();
        let Some(Down::Heartbeat(beat)) = message.message else {
            panic!("{message:?}")
        };
        assert_eq!(beat.revision, n + 1);
    }
    said(0).await;
    let failed = soon("the end", down.message()).await.unwrap_err();
    assert_eq!(
        (failed.code(), failed.message()),
        (Code::DataLoss, "the end")
    );
    scene
        .web
        .counted(&["isthmus_dataplane_requests", "grpc_status=\"15\""])
        .await;
}

#[tokio::test]
async fn the_mesh_says_no_in_the_words_of_grpc() {
    let application = application().await;
    let scene = scene(Protocol::Grpc, application).await;
    let mut client = JoinClient::new(channel(scene.outbound).await);
    soon("an answer", client.join_zone(named("east")))
        .await
        .unwrap();
    let document = store_document(
        scene.protocol,
        scene.inbound,
        application,
        wire::Permissions::default(),
    );
    scene.put(&scene.store, "store-1", 1, vec![document]).await;
    let failed = soon("an answer", client.join_zone(named("east")))
        .await
        .unwrap_err();
    assert_eq!(failed.code(), Code::PermissionDenied, "{failed:?}");
    scene
        .store
        .counted(&[
            "isthmus_dataplane_requests",
            "grpc_status=\"7\"",
            "said_by=\"policy\"",
        ])
        .await;
    scene.zone.change(|world| {
        let nowhere = endpoints("store", &[]);
        world.endpoints.insert(nowhere.key.clone(), nowhere);
    });
    eventually("nobody is there", async || {
        client
            .clone()
            .join_zone(named("east"))
            .await
            .is_err_and(|failed| failed.code() == Code::Unavailable)
    })
    .await;
}

/// `grpc.health.v1`, as load balancers and `grpc_health_probe` ask it.
#[tokio::test]
async fn health_is_asked_and_watched_through_the_sidecars() {
    let (port, reporter) = serve(Application::default()).await;
    let scene = scene(Protocol::Grpc, port).await;
    reporter
        .set_service_status("shop.Store", ServingStatus::Serving)
        .await;
    let mut client = HealthClient::new(channel(scene.outbound).await);
    let of = |service: &str| HealthCheckRequest {
        service: service.into(),
    };
    for service in ["", "shop.Store"] {
        let answer = soon("an answer", client.check(of(service))).await.unwrap();
        let status = answer.into_inner().status();
        assert_eq!(status, health_check_response::ServingStatus::Serving);
    }
    let failed = soon("an answer", client.check(of("shop.Nobody")))
        .await
        .unwrap_err();
    assert_eq!(failed.code(), Code::NotFound);
    let watch = soon("a stream", client.watch(of("shop.Store"))).await;
    let mut watch = watch.unwrap().into_inner();
    let mut next = async || {
        let message = soon("a change", watch.message()).await.unwrap();
        message.unwrap().status()
    };
    assert_eq!(next().await, health_check_response::ServingStatus::Serving);
    reporter
        .set_service_status("shop.Store", ServingStatus::NotServing)
        .await;
    assert_eq!(
        next().await,
        health_check_response::ServingStatus::NotServing
    );
    // It leaves, and that is what the records say on both sides.
    drop((watch, client));
    let words = [
        "isthmus_dataplane_requests",
        "said_by=\"client\"",
        "reason=\"client_gone\"",
    ];
    scene.web.counted(&words).await;
    scene.store.counted(&words).await;
}

#[tokio::test]
async fn a_call_whose_deadline_is_over_is_given_up_by_the_application_as_well() {
    let application = Application::default();
    let given_up = application.0.clone();
    let scene = scene(Protocol::Grpc, serve(application).await.0).await;
    let mut client = JoinClient::new(channel(scene.outbound).await);
    let mut request = Request::new(named("hang"));
    request.set_timeout(Duration::from_millis(300));
    let failed = soon("an answer", client.join_zone(request))
        .await
        .unwrap_err();
    assert!(
        matches!(failed.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{failed:?}"
    );
    eventually("the application has given it up", async || {
        given_up.load(Ordering::SeqCst) == 1
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_a_policy_ends_says_so_in_the_words_of_grpc() {
    let (port, _) = serve(Application::default()).await;
    let scene = scene(Protocol::Grpc, port).await;
    let mut service = http_service("store", Protocol::Grpc);
    service.timeouts = Some(wire::Timeouts {
        http: Some(wire::HttpTimeouts {
            max_stream_ms: 500,
            max_stream_origin: "MeshTimeout/short to[0]".into(),
            ..wire::HttpTimeouts::default()
        }),
        ..timeouts()
    });
    let documents = vec![seal_service(service)];
    scene.put(&scene.web, "web-1", 1, documents).await;
    let mut client = HealthClient::new(channel(scene.outbound).await);
    let asked = HealthCheckRequest::default();
    let watch = soon("a stream", client.watch(asked)).await;
    let mut watch = watch.unwrap().into_inner();
    soon("the first message", watch.message()).await.unwrap();
    let failed = soon("the end", watch.message()).await.unwrap_err();
    assert_ne!(failed.code(), Code::Ok, "{failed:?}");
    scene
        .web
        .counted(&[
            "isthmus_dataplane_requests",
            "said_by=\"policy\"",
            "reason=\"stream_too_long\"",
        ])
        .await;
}

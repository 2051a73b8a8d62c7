//! Large heads pass, or are refused with a reason; they never hang (FIELD c17).

use bytes::Bytes;
use http::Request;

use super::{application::application, wire_client::Wire, *};

/// What makes a head large: the size of one field, how many fields, the size of the target.
#[derive(Debug, Clone, Copy)]
struct Size {
    field: usize,
    fields: usize,
    target: usize,
}

const PASS: [Size; 5] = [
    Size {
        field: 8 << 10,
        fields: 1,
        target: 1,
    },
    Size {
        field: 60 << 10,
        fields: 1,
        target: 1,
    },
    Size {
        field: 100 << 10,
        fields: 1,
        target: 1,
    },
    Size {
        field: 20,
        fields: 200,
        target: 1,
    },
    Size {
        field: 1,
        fields: 1,
        target: 16 << 10,
    },
];
const TOO_LARGE: Size = Size {
    field: 200 << 10,
    fields: 1,
    target: 1,
};

impl Size {
    fn path(self, what: &str) -> String {
        let Self {
            field,
            fields,
            target,
        } = self;
        format!("/{what}/{field}/{fields}/{}", "t".repeat(target))
    }

    fn fields(self) -> impl Iterator<Item = (String, String)> {
        (0..self.fields).map(move |n| (format!("x-large-{n}"), "v".repeat(self.field)))
    }
}

type Answered = (u16, Option<String>, usize);

/// Status, the mesh's reason, and the bytes of large fields.
async fn over_http1(port: u16, path: &str, size: Option<Size>) -> Answered {
    let mut wire = Wire::new(connect(port).await);
    let mut text = format!("GET {path} HTTP/1.1\r\nHost: shop\r\n");
    for (name, value) in size.into_iter().flat_map(Size::fields) {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    let _ = wire.send(text + "\r\n").await;
    let answer = soon("an answer", wire.answer("GET")).await.unwrap();
    let large = answer
        .fields
        .iter()
        .filter(|(name, _)| name.starts_with("x-large"));
    let bytes = large.map(|(_, value)| value.len()).sum();
    let reason = answer.field("x-isthmus-reason").map(str::to_owned);
    (answer.status(), reason, bytes)
}

async fn over_http2(port: u16, path: &str, size: Option<Size>) -> Answered {
    let (mut sender, connection) = h2::client::Builder::new()
        .handshake::<_, Bytes>(connect(port).await)
        .await
        .unwrap();
    let driving = tokio::spawn(connection);
    let mut request = Request::get(format!("http://shop{path}"));
    for (name, value) in size.into_iter().flat_map(Size::fields) {
        request = request.header(name, value);
    }
    let (answer, _) = sender
        .send_request(request.body(()).unwrap(), true)
        .unwrap();
    let answer = soon("an answer", answer).await.unwrap();
    let large = answer
        .headers()
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("x-large"));
    let bytes = large.map(|(_, value)| value.len()).sum();
    let reason = answer.headers().get("x-isthmus-reason");
    let reason = reason.map(|reason| reason.to_str().unwrap().to_owned());
    driving.abort();
    (answer.status().as_u16(), reason, bytes)
}

#[tokio::test]
async fn large_heads_pass_and_larger_ones_are_refused_with_a_reason() {
    let (application, seen) = application().await;
    let scene = scene(Protocol::Http, application).await;
    let port = scene.outbound;
    for size in PASS {
        let bytes = size.field * size.fields;
        seen.take();
        for answered in [
            over_http1(port, &size.path("ask"), Some(size)).await,
            over_http2(port, &size.path("ask"), Some(size)).await,
        ] {
            assert_eq!(answered, (200, None, 0), "{size:?}");
        }
        eventually("both have been seen", async || seen.len() == 2).await;
        for asked in seen.take() {
            let large = asked
                .fields
                .iter()
                .filter(|(name, _)| name.starts_with("x-large"));
            assert_eq!(large.map(|(_, value)| value.len()).sum::<usize>(), bytes);
            assert_eq!(asked.target(), size.path("ask"));
        }
        for answered in [
            over_http1(port, &size.path("fields"), None).await,
            over_http2(port, &size.path("fields"), None).await,
        ] {
            assert_eq!(answered, (200, None, bytes), "{size:?}");
        }
    }
    let (status, reason, _) = over_http1(port, "/ask", Some(TOO_LARGE)).await;
    assert_eq!((status, reason.as_deref()), (431, Some("bad_request")));
    scene
        .web
        .counted(&["isthmus_dataplane_requests", "status=\"431\""])
        .await;
    // h2 itself answers what is larger than its settings say.
    let (status, _, _) = over_http2(port, "/ask", Some(TOO_LARGE)).await;
    assert_eq!(status, 431);
    for answered in [
        over_http1(port, &TOO_LARGE.path("fields"), None).await,
        over_http2(port, &TOO_LARGE.path("fields"), None).await,
    ] {
        assert_eq!(answered, (502, Some("bad_answer".to_owned()), 0));
    }
    scene
        .store
        .counted(&[
            "isthmus_dataplane_requests",
            "status=\"502\"",
            "reason=\"bad_answer\"",
        ])
        .await;
    scene
        .web
        .counted(&[
            "isthmus_dataplane_requests",
            "status=\"502\"",
            "reason=\"bad_answer\"",
        ])
        .await;
}

//! Which service a connection of the application goes to: the one it calls, or a backend of the route that splits that
//! service's connections.
//!
//! A backend that is not there keeps its share, and its connections fail: traffic never goes anywhere that no route
//! says (FIELD d11). Requests of HTTP have routes of their own ([`http::route`](crate::http::route)).

use std::sync::Arc;

use crate::{
    record::{ClosedBy, End, Reason},
    snapshot::{ServiceRoute, Snapshot},
};

/// Where a connection goes.
pub struct Destination {
    /// The service that the application calls. What holds for the application's connection is in its document.
    pub called: Arc<ServiceRoute>,
    /// The service that it reaches: the called one, or a backend of its route. What holds for connections to endpoints
    /// is in this one's document; a route in it is not followed.
    pub reached: Arc<ServiceRoute>,
}

impl Destination {
    /// The policy entry that sends it there, where one does.
    #[must_use]
    pub fn route(&self) -> Option<&Arc<str>> {
        self.called
            .service
            .route
            .as_ref()
            .map(|route| &route.origin)
    }
}

/// Chooses for one connection to the service in `document`.
///
/// # Errors
/// Where the service, or the backend whose turn it is, is not there.
pub fn choose(snapshot: &Snapshot, document: &str) -> Result<Destination, End> {
    let failed = |reason, detail| Err(End::failed(reason, ClosedBy::Proxy, detail));
    let Some(called) = snapshot.services.get(document) else {
        let detail = format!(
            "{document} has not come from the zone control plane: is it connected, and does the service exist?"
        );
        return failed(Reason::NoService, detail);
    };
    let Some(route) = &called.service.route else {
        return Ok(Destination {
            called: called.clone(),
            reached: called.clone(),
        });
    };
    let origin = &route.origin;
    let Some(backend) = route.next() else {
        let detail = format!("{origin} names no backend with a weight");
        return failed(Reason::NoBackend, detail);
    };
    match snapshot.services.get(&**backend) {
        Some(reached) => Ok(Destination {
            called: called.clone(),
            reached: reached.clone(),
        }),
        None => {
            let detail = format!(
                "{origin} sends this connection to {backend}, which has not come from the zone control plane: does the service exist, with this port?"
            );
            failed(Reason::NoBackend, detail)
        }
    }
}

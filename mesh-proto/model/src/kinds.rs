//! Every kind of resource: one file each, and one line in the list at the end of this file.

use std::sync::LazyLock;

use serde_json::Value;

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, Registered},
    policy::{BuiltIn, Policy, PolicyShape},
    resource::Meta,
    shape::ContentSchema,
};

/// Registers kinds: the module, its type, the variant of [`Spec`], the descriptor, and the functions that depend on
/// the type of a kind known only at run time.
macro_rules! kinds {
    ($($module:ident: $kind:ident,)*) => {
        $(
            pub mod $module;
            pub use $module::$kind;
        )*

        /// The content of a resource.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs)] // each is documented at its type
        pub enum Spec {
            $($kind($kind),)*
        }

        /// Every kind.
        #[must_use]
        pub fn kinds() -> &'static [Descriptor] {
            const ALL: &[Descriptor] = &[$($kind::DESCRIPTOR,)*];
            ALL
        }

        impl Spec {
            pub(crate) fn kind(&self) -> &'static Descriptor {
                match self {
                    $(Self::$kind(_) => const { &$kind::DESCRIPTOR },)*
                }
            }

            pub(crate) fn to_value(&self) -> Result<Value, serde_json::Error> {
                match self {
                    $(Self::$kind(spec) => serde_json::to_value(spec),)*
                }
            }

            pub(crate) fn validate(&self, meta: &Meta, out: &mut Checker) {
                match self {
                    $(Self::$kind(spec) => spec.validate(meta, out),)*
                }
            }

            pub(crate) fn policy(&self) -> Option<&dyn Policy> {
                match self {
                    $(Self::$kind(spec) => spec.policy(),)*
                }
            }
        }

        impl Descriptor {
            /// What policies of this kind may say; `None`: it is no kind of policy.
            #[must_use]
            pub fn policy(&self) -> Option<&'static PolicyShape> {
                $(if self.name == $kind::DESCRIPTOR.name {
                    return const { <$kind as Kind>::POLICY.as_ref() };
                })*
                unreachable!("{} is not in the list of kinds", self.name)
            }

            /// For kinds of policies: what holds where no policy says anything.
            #[must_use]
            pub fn built_in(&self) -> BuiltIn {
                $(if self.name == $kind::DESCRIPTOR.name {
                    return <$kind as Kind>::BUILT_IN;
                })*
                unreachable!("{} is not in the list of kinds", self.name)
            }

            /// Reads the content of a resource of this kind.
            pub(crate) fn read(
                &self,
                value: Value,
            ) -> Result<Spec, serde_path_to_error::Error<serde_json::Error>> {
                $(if self.name == $kind::DESCRIPTOR.name {
                    return Ok(Spec::$kind(serde_path_to_error::deserialize(value)?));
                })*
                unreachable!("{} is not in the list of kinds", self.name)
            }

            /// The schema of this kind's content.
            pub(crate) fn content_schema(&self) -> &'static ContentSchema {
                $(if self.name == $kind::DESCRIPTOR.name {
                    static SCHEMA: LazyLock<ContentSchema> = LazyLock::new(ContentSchema::of::<$kind>);
                    return &SCHEMA;
                })*
                unreachable!("{} is not in the list of kinds", self.name)
            }
        }

        $(
            impl From<$kind> for Spec {
                fn from(spec: $kind) -> Self {
                    Self::$kind(spec)
                }
            }

            impl Registered for $kind {
                fn of_spec(spec: &Spec) -> Option<&Self> {
                    match spec {
                        Spec::$kind(spec) => Some(spec),
                        #[allow(unreachable_patterns)] // with a single kind
                        _ => None,
                    }
                }
            }
        )*
    };
}

kinds! {
    mesh: Mesh,
    zone: Zone,
    dataplane: Dataplane,
    mesh_service: MeshService,
    mesh_identity: MeshIdentity,
    mesh_trust: MeshTrust,
    mesh_traffic_permission: MeshTrafficPermission,
    mesh_timeout: MeshTimeout,
    mesh_tcp_route: MeshTCPRoute,
    mesh_http_route: MeshHTTPRoute,
    mesh_retry: MeshRetry,
    mesh_circuit_breaker: MeshCircuitBreaker,
    mesh_health_check: MeshHealthCheck,
    mesh_load_balancing_strategy: MeshLoadBalancingStrategy,
    mesh_fault_injection: MeshFaultInjection,
    mesh_rate_limit: MeshRateLimit,
    mesh_tls: MeshTLS,
    mesh_access_log: MeshAccessLog,
    mesh_trace: MeshTrace,
    mesh_metric: MeshMetric,
    mesh_passthrough: MeshPassthrough,
    mesh_multi_zone_service: MeshMultiZoneService,
    mesh_external_service: MeshExternalService,
    mesh_open_telemetry_backend: MeshOpenTelemetryBackend,
    hostname_generator: HostnameGenerator,
    zone_ingress: ZoneIngress,
    zone_egress: ZoneEgress,
    secret: Secret,
    global_secret: GlobalSecret,
    user: User,
    role: Role,
    role_binding: RoleBinding,
    token: Token,
    token_issuer: TokenIssuer,
}

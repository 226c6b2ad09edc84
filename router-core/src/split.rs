//! Decides requests in a fleet whose workers share a generation: one prefills, another decodes.

use crate::candidates::exclusion;
use crate::fleet::Role;
use crate::in_flight::InFlight;
use crate::router::{RouteError, RouteRequest, Router};
use crate::settings::Settings;
use crate::snapshot::Snapshot;
use crate::time::Time;

/// Two requests in flight that share a generation.
#[derive(Debug)]
pub struct Pair {
    /// Computes the prompt; chosen by the policy in force.
    pub prefill: InFlight,
    /// Generates; chosen by [`KvSpace`](crate::policy::KvSpace).
    pub decode: InFlight,
}

impl Router {
    /// Whether some workers only prefill or only decode, so that generations are to be decided by
    /// [`route_pair`](Self::route_pair).
    pub fn has_pools(&self) -> bool {
        self.cell().load().fleet.has_pools
    }

    /// Decides a generation, both halves of it on one snapshot: a prefill and a decode worker if both pools have one that may be
    /// chosen, `None` if a unified worker is to be chosen instead, else an error that names the pool that has none. The role and, for the decode worker, the
    /// rank of `request` are not looked at: a rank that is asked for is the one that holds the prefix.
    pub fn route_pair(
        &self,
        request: &RouteRequest<'_>,
        now: Time,
        rng: &mut fastrand::Rng,
    ) -> Result<Option<Pair>, RouteError> {
        let snapshot = self.cell().load();
        let mut decide = |role, rank| {
            let request = RouteRequest { role: Some(role), rank, ..*request };
            self.decide(&snapshot, &request, now, rng)
        };
        // The decode worker first: choosing it claims nothing that would have to be taken back.
        let pair = decide(Role::Decode, None).and_then(|decode| match decide(Role::Prefill, request.rank) {
            Ok(prefill) => Ok(Some(Pair { prefill, decode })),
            Err(error) => {
                decode.take_back();
                Err(error)
            }
        });
        let unified = RouteRequest { role: Some(Role::Unified), ..*request };
        pair.or_else(|error| match may_serve(&snapshot, &unified, self.settings(), now) {
            true => Ok(None),
            false => Err(error),
        })
    }

    /// The pool for what is no generation: unified workers if there are any that may be chosen, else whoever there is.
    pub fn pool_of_others(&self, request: &RouteRequest<'_>, now: Time) -> Option<Role> {
        let snapshot = self.cell().load();
        let unified = RouteRequest { role: Some(Role::Unified), ..*request };
        may_serve(&snapshot, &unified, self.settings(), now).then_some(Role::Unified)
    }
}

/// The pool that `explain` shows of a request that names none: the one whose choice depends on the prompt.
pub(crate) fn shown(
    snapshot: &Snapshot,
    request: &RouteRequest<'_>,
    settings: &Settings,
    now: Time,
) -> Option<Role> {
    if request.role.is_some() || !snapshot.fleet.has_pools {
        return request.role;
    }
    let serves =
        |role, rank| may_serve(snapshot, &RouteRequest { role: Some(role), rank, ..*request }, settings, now);
    Some(match () {
        () if serves(Role::Decode, None) && serves(Role::Prefill, request.rank) => Role::Prefill,
        () if serves(Role::Unified, request.rank) => Role::Unified,
        () if serves(Role::Decode, None) => Role::Prefill,
        () => Role::Decode,
    })
}

fn may_serve(snapshot: &Snapshot, request: &RouteRequest<'_>, settings: &Settings, now: Time) -> bool {
    snapshot.fleet.targets.iter().any(|target| exclusion(target, request, settings, now).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Declaration, TargetId, WorkerProfile};
    use crate::key::Salt;
    use crate::key::Unit;
    use crate::update::{Done, FleetUpdate, Update};
    use crate::{Load, Writer};

    /// A fleet of such workers, all ready.
    fn fleet(roles: &[(Role, &str)]) -> (Router, Writer) {
        let (router, mut writer) = Router::new(Settings::new(7));
        let send = |update| router.updates().try_send(Update::Fleet(update)).unwrap();
        for at in 0..roles.len() {
            send(FleetUpdate::Add { url: format!("http://w{at}:1").into(), done: Done::ignore() });
        }
        writer.turn(Time::from_micros(1));
        for (worker, (role, model)) in router.snapshot().fleet.workers.iter().zip(roles) {
            let worker = worker.id;
            let profile = WorkerProfile {
                models: vec![(*model).into()],
                role: Some(*role),
                ..WorkerProfile::default()
            };
            send(FleetUpdate::Profile { worker, profile: profile.into(), done: Done::ignore() });
            send(FleetUpdate::Health { worker, reachable: true, reason: "".into() });
        }
        writer.turn(Time::from_micros(2));
        (router, writer)
    }

    fn split(router: &Router, request: &RouteRequest<'_>) -> Result<Option<Pair>, RouteError> {
        router.route_pair(request, Time::from_micros(3), &mut fastrand::Rng::with_seed(1))
    }

    fn role_of(router: &Router, target: TargetId) -> Role {
        router.snapshot().fleet.target(target).unwrap().worker.role
    }

    #[test]
    fn a_pair_has_one_of_each_and_only_the_prefill_side_claims() {
        use Role::{Decode, Prefill, Unified};
        let (router, mut writer) = fleet(&[(Unified, "m"), (Decode, "m"), (Prefill, "m"), (Prefill, "m")]);
        assert!(router.has_pools());
        let tokens: Vec<u32> = (0..640).collect();
        let key = router.key_space(Unit::Token).key_of_tokens(Salt::default(), &tokens);
        let request = RouteRequest { key: Some(&key), ..RouteRequest::default() };
        let mut homes = std::collections::HashSet::new();
        for _ in 0..8 {
            let Pair { prefill, decode } = split(&router, &request).unwrap().unwrap();
            assert_eq!(role_of(&router, prefill.target()), Prefill);
            assert_eq!(role_of(&router, decode.target()), Decode);
            assert_eq!((decode.predicted_tokens(), decode.prompt_tokens()), (0, 640));
            homes.insert(prefill.target());
            prefill.complete(Time::from_micros(4));
            decode.complete(Time::from_micros(5));
            writer.turn(Time::from_micros(6));
        }
        // Figures are shown a little later.
        writer.turn(Time::from_micros(1_000_000));
        assert_eq!(homes.len(), 1, "the prefix stays where it is");
        for target in &router.snapshot().fleet.targets {
            assert_eq!(target.claimed_tokens > 0, homes.contains(&target.id));
            assert_eq!(target.load.read(), Load::default());
        }
    }

    #[test]
    fn a_missing_half_is_named_unless_a_unified_worker_serves() {
        use Role::{Decode, Prefill, Unified};
        let model = |model| RouteRequest { model: Some(model), ..RouteRequest::default() };
        let (router, _writer) = fleet(&[(Prefill, "m"), (Decode, "n"), (Unified, "u"), (Prefill, "u")]);
        let empty = |role, registered| RouteError::PoolEmpty { role, registered };
        assert_eq!(split(&router, &model("m")).unwrap_err(), empty(Decode, 1));
        assert_eq!(split(&router, &model("n")).unwrap_err(), empty(Prefill, 2));
        assert!(matches!(split(&router, &model("u")), Ok(None)));
        assert!(matches!(split(&router, &model("x")), Err(RouteError::UnknownModel { .. })));
        assert!(router.snapshot().fleet.targets.iter().all(|target| target.load.read() == Load::default()));
        let (unified, _writer) = fleet(&[(Unified, "m")]);
        assert!(!unified.has_pools());
    }

    #[test]
    fn a_half_that_has_been_tried_is_not_taken_again() {
        use Role::{Decode, Prefill};
        let (router, _writer) = fleet(&[(Prefill, "m"), (Decode, "m"), (Decode, "m")]);
        let workers: Vec<_> = router.snapshot().fleet.workers.iter().map(|worker| worker.id).collect();
        let tried = |tried| RouteRequest { tried, ..RouteRequest::default() };
        for _ in 0..8 {
            let decode = split(&router, &tried(&workers[1..2])).unwrap().unwrap().decode;
            assert_eq!(decode.target().worker, workers[2]);
        }
        assert_eq!(split(&router, &tried(&workers[..1])).unwrap_err(), RouteError::AllTried);
    }

    #[test]
    fn what_is_declared_wins_over_what_the_engine_says() {
        let (router, mut writer) = fleet(&[(Role::Unified, "m")]);
        let worker = router.snapshot().fleet.workers[0].id;
        let declaration = Declaration { role: Some(Role::Prefill), bootstrap_port: Some(9) };
        let declare = FleetUpdate::Declare { worker, declaration, done: Done::ignore() };
        router.updates().try_send(Update::Fleet(declare)).unwrap();
        writer.turn(Time::from_micros(3));
        let snapshot = router.snapshot();
        let worker = &snapshot.fleet.workers[0];
        assert_eq!((worker.role, worker.bootstrap_port), (Role::Prefill, 9));
        assert!(router.has_pools() && !snapshot.fleet.can_serve());
    }

    #[test]
    fn an_explanation_shows_the_pool_that_the_prompt_decides() {
        use Role::{Decode, Prefill, Unified};
        let explain = |roles: &[(Role, &str)]| {
            let (router, _writer) = fleet(roles);
            router.explain(&RouteRequest::default(), Time::from_micros(3), &mut fastrand::Rng::with_seed(1))
        };
        let shown = explain(&[(Decode, "m"), (Prefill, "m"), (Unified, "m")]).unwrap();
        assert_eq!((shown.policy, shown.candidates.len(), shown.excluded.len()), ("cache_aware", 1, 2));
        assert!(shown.excluded.iter().any(|excluded| &*excluded.why == "is a decode worker"));
        let error = explain(&[(Prefill, "m")]).unwrap_err();
        assert_eq!(error, RouteError::PoolEmpty { role: Decode, registered: 0 });
    }
}

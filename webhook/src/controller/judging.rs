//! How a request is judged: by its pod, by policy, namespace and Services, and by who else reports the pod's addresses.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use etcd_tls_contract::{
    identity::{self, BoundPod, Claim, Claimant, Claims, Entitlement, PodFacts, ServiceFacts, Verdict},
    names::SignerName,
    policy::Policy,
    san::Sans,
};

use super::{
    Controller, NO_POLICY, Trouble,
    case::Case,
    client::ApiServerError,
    events::{Notice, pod_reference, reasons::ADDRESS_CONTESTED},
    facts::Csr,
    namespaces,
    pods::Found,
    policy, services,
};

impl Controller {
    /// Judges a request by its pod, in a state no older than the request ([`super::pods`]), and by what the watches have of policy,
    /// namespace and Services. A denial is final, so it is judged again by all of them as they are now.
    ///
    /// # Errors
    /// It cannot be judged now.
    pub(crate) async fn decide(&self, csr: &Csr, case: &Case) -> Result<Verdict, Trouble> {
        let judge =
            |pod: Option<&PodFacts>, services: &[ServiceFacts], policy: &Policy| case.judge(csr, pod, services, policy);
        self.decide_by(case.needs_pod(), case.signer(), csr.resource_version(), judge).await
    }

    /// [`Self::decide`] of a request of this resourceVersion to `signer`, for the pod `bound`, by the rules of `judge`.
    ///
    /// # Errors
    /// It cannot be judged now.
    pub(crate) async fn decide_by(
        &self,
        bound: Option<&BoundPod>,
        signer: Option<&SignerName>,
        version: &str,
        judge: impl Fn(Option<&PodFacts>, &[ServiceFacts], &Policy) -> Verdict,
    ) -> Result<Verdict, Trouble> {
        let pod = match bound {
            Some(bound) => known(bound, self.pods.no_older_than(bound, version).await?)?,
            None => None,
        };
        let (policy, there) = self.in_force().ok_or_else(|| Trouble::NotYet(NO_POLICY.to_owned()))?;
        let with = |pod: &PodFacts, opted_in| PodFacts { namespace_opted_in: opted_in, ..pod.clone() };
        let verdict = match &pod {
            Some(pod) => {
                let opted_in = there.and_then(|all| all.get(&*pod.namespace).map(|n| n.opted_in));
                let services = self.services.selecting(pod).await?;
                let verdict = judge(Some(&with(pod, opted_in.unwrap_or_default())), &services, &policy);
                if !matches!(verdict, Verdict::Deny(_)) {
                    return self.unless_contested(verdict, pod, &services, &policy).await;
                }
                verdict
            }
            None => judge(None, &[], &policy),
        };
        if !matches!(verdict, Verdict::Deny(_)) {
            return Ok(verdict);
        }
        // Neither what a watch has not brought yet nor what was left out may be the reason.
        let policy = self.policy_now(policy, bound, signer).await?;
        let pod = match bound {
            Some(bound) => known(bound, self.pods.now(bound, version).await?)?,
            None => None,
        };
        let Some(pod) = pod else { return Ok(judge(None, &[], &policy)) };
        let namespace = namespaces::live(&self.client, &pod.namespace).await?;
        let services = self.services.now(&pod).await.map_err(services::Unknown::Failed)?;
        let facts = with(&pod, namespace.is_some_and(|namespace| namespace.opted_in));
        self.unless_contested(judge(Some(&facts), &services, &policy), &facts, &services, &policy).await
    }

    /// The verdict, given who else has the pod's addresses; where that keeps it waiting, an Event on each of the pods says so.
    async fn unless_contested(
        &self,
        verdict: Verdict,
        pod: &PodFacts,
        services: &[ServiceFacts],
        policy: &Policy,
    ) -> Result<Verdict, Trouble> {
        let Verdict::Approve(entitlement) = &verdict else { return Ok(verdict) };
        if !(self.pods.is_complete() && self.services.is_complete()) {
            return Err(Trouble::NotYet("pods and Services are not listed yet".to_owned()));
        }
        let mut claims = Claims { claims: self.pods.claims(pod), held: self.pods.held(&pod.uid, SystemTime::now()) };
        for ip in &pod.ips {
            if let Some((namespace, name)) = self.services.with_cluster_ip(*ip) {
                claims.claims.push(Claim { ip: *ip, by: Claimant::Service { namespace, name } });
            }
            // A pod on the host's network has the host's addresses, which may be those of a load balancer, too.
            let outside = self.services.with_outside_ip(&pod.namespace, *ip).filter(|_| !pod.host_network);
            if let Some(name) = outside {
                claims
                    .claims
                    .push(Claim { ip: *ip, by: Claimant::External { namespace: pod.namespace.clone(), name } });
            }
            let host = policy.host_with_ip(&entitlement.signer, *ip, &pod.node).filter(|_| !pod.host_network);
            if let Some(host) = host {
                claims.claims.push(Claim { ip: *ip, by: Claimant::Host(host.username.clone()) });
            }
        }
        for claim in identity::contested(entitlement, pod, services, &claims) {
            let note = format!(
                "no certificate for {}: {claim}, so it is not known whose it is. It is issued when only one has it; a certificate \
                 that is valid is renewed",
                claim.ip
            );
            let regarding = pod_reference(&pod.namespace, &pod.name, &pod.uid);
            self.recorder.say_beside(Notice { regarding, reason: ADDRESS_CONTESTED, note });
            if let Claimant::Pod { namespace, name, uid, .. } = &claim.by {
                let note = format!(
                    "pod {}/{} on node {} reports the address {} of this pod too: neither gets a first certificate for it",
                    pod.namespace, pod.name, pod.node, claim.ip
                );
                let regarding = pod_reference(namespace, name, uid);
                self.recorder.say_beside(Notice { regarding, reason: ADDRESS_CONTESTED, note });
            }
        }
        Ok(identity::unless_contested(verdict, pod, services, &claims))
    }

    /// The index of policy's rule by which a person decides about a request that is found good, to a signer of ours; `None`: there
    /// is none. By the policy as it is written now, since a refusal may follow; by the one in force where it `is_left` to a person
    /// already.
    ///
    /// # Errors
    /// There is no policy, or it cannot be read now.
    pub(crate) async fn manual_approval(
        &self,
        bound: Option<&BoundPod>,
        entitlement: &Entitlement,
        is_left: bool,
    ) -> Result<Option<usize>, Trouble> {
        let (policy, _) = self.in_force().ok_or_else(|| Trouble::NotYet(NO_POLICY.to_owned()))?;
        let namespace = bound.map(|bound| bound.namespace.as_str());
        let rule = |policy: &Policy| policy.manual_approval(namespace, &entitlement.signer);
        match rule(&policy) {
            found if is_left || found.is_none() => Ok(found),
            _ => Ok(rule(&*self.policy_now(policy, bound, Some(&entitlement.signer)).await?)),
        }
    }

    /// Takes note of a certificate: its pod may go on with its addresses when another reports them.
    pub(crate) fn note_certificate(&self, case: &Case, sans: &Sans, ends: SystemTime) {
        if let Some(bound) = &case.bound {
            self.pods.hold(&bound.pod_uid, sans.ips.iter().copied().filter(|ip| !ip.is_loopback()), ends);
        }
    }

    /// The same of a request whose signer is decided about here, that another replica, or this one before its start, has answered.
    pub(crate) fn note_answered(&self, csr: &Csr) {
        let Some(uid) = csr.pod_uid().filter(|_| csr.status.has_certificate) else { return };
        let known = !self.pods.held(uid, SystemTime::now()).is_empty();
        if known {
            return;
        }
        let Some(policy) = self.policy.borrow().clone() else { return };
        let case = Case::open(csr);
        let life = csr.expiration().unwrap_or(policy.lifetime.max).min(policy.lifetime.max);
        if let (Some(sans), Some(created)) = (case.sans(), csr.created()) {
            self.note_certificate(&case, sans, created + life);
        }
    }

    /// The namespaces as the watch has them now, and the policy in force for these: that of the channel may be of those before.
    pub(crate) fn in_force(&self) -> Option<(Arc<Policy>, Option<Arc<namespaces::Map>>)> {
        let policy = self.policy.borrow().clone()?;
        let there = self.namespaces.borrow().clone();
        let policy = policy::for_these(policy, there.as_deref());
        Some((policy, there))
    }

    /// The policy as it is written now, for the namespaces of pod and signer as they are now; `last` where it cannot be read.
    async fn policy_now(
        &self,
        last: Arc<Policy>,
        bound: Option<&BoundPod>,
        signer: Option<&SignerName>,
    ) -> Result<Arc<Policy>, ApiServerError> {
        let Some(policy) = policy::live(&self.client, &self.namespace).await? else { return Ok(last) };
        if policy.namespace_uids.is_empty() {
            return Ok(Arc::new(policy));
        }
        let mut live = BTreeMap::new();
        for name in bound.map(|bound| &bound.namespace).into_iter().chain(signer.map(|signer| &signer.namespace)) {
            if policy.namespace_uids.contains_key(name) && !live.contains_key(name) {
                live.insert(name.clone(), namespaces::live(&self.client, name).await?.map(|facts| facts.uid));
            }
        }
        let watched = self.namespaces.borrow().clone().unwrap_or_default();
        let uid = |name: &str| match live.get(name) {
            Some(uid) => uid.as_deref(),
            None => watched.get(name).map(|facts| facts.uid.as_str()),
        };
        Ok(Arc::new(policy.for_namespaces(uid)))
    }
}

/// The facts of a pod; `None`: there is no such pod.
fn known(bound: &BoundPod, found: Found) -> Result<Option<Arc<PodFacts>>, Trouble> {
    match found {
        Found::Gone => Ok(None),
        Found::There(facts) => Ok(Some(facts)),
        Found::TooLarge => Err(Trouble::NotYet(format!(
            "pod {}/{} has more labels and annotations than are read of a pod; take away what it does not need",
            bound.namespace, bound.pod
        ))),
    }
}

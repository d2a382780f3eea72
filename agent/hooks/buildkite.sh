#!/bin/sh
# artifacts-agent after a job of a Buildkite agent: waits until the events of the job have been delivered, and says in the job's
# log what became of them.
#
# Install it as the agent's pre-exit hook (the directory is `hooks-path` in buildkite-agent.cfg):
#
#   artifacts-agent hook buildkite | sudo install -m 0755 /dev/stdin /etc/buildkite-agent/hooks/pre-exit
#
# The control socket is the daemon's alone. With the systemd units, let the agent's user run this one command as the daemon's, with
# `sudo visudo -f /etc/sudoers.d/artifacts-agent`, or the hook can only say that it may not ask:
#
#   buildkite-agent ALL=(artifacts-agent) NOPASSWD: /usr/local/bin/artifacts-agent flush --deadline 15s --job -
#
# What the cache did for the job, if its command ran under `artifacts-agent exec`, goes to the log and to an annotation of the build.
#
# Its status is 0 whatever happens: telemetry never changes a job's result. The agent sources its hooks, so that this one must not
# call exit, and leaves nothing behind in the shell. What is not delivered when the deadline passes stays in the queue, and the
# daemon goes on with it.
(
  deadline=15s
  echo "~~~ Delivering Remote Cache usage events"
  # As this user, or as the daemon's where only sudo may; the job's variables say whose events are meant.
  ask() {
    if sudo -n -l -u artifacts-agent artifacts-agent flush --deadline "$deadline" --job - >/dev/null 2>&1; then
      sudo -n -u artifacts-agent artifacts-agent flush --deadline "$deadline" --job - 2>&1
    else
      artifacts-agent flush --deadline "$deadline" --job - 2>&1
    fi
  }
  said=$(env | grep -E '^(ARTIFACTS_AGENT_JOB|BUILDKITE|BUILDKITE_(LABEL|BUILD_URL|JOB_ID))=' | ask) || true
  printf '%s\n' "$said"
  usage=$(printf '%s\n' "$said" | grep '^cache: ') || true
  if [ -n "$usage" ] && command -v buildkite-agent >/dev/null; then # it asks the network, and is not waited for
    printf '**%s**. Tasks run in parallel: the build got shorter by less.\n' "$usage" |
      buildkite-agent annotate --style info --context "artifacts-agent-$BUILDKITE_JOB_ID" >/dev/null 2>&1 &
  fi
) || true

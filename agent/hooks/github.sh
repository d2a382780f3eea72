#!/bin/sh
# artifacts-agent after a job of a self-hosted GitHub Actions runner: waits until the events of the job have been delivered, and
# says in the job's log what became of them.
#
# Install it outside the runner's own directory, name it in the runner's .env, and restart the runner:
#
#   sudo install -d /usr/local/lib/artifacts-agent
#   artifacts-agent hook github | sudo install -m 0755 /dev/stdin /usr/local/lib/artifacts-agent/job-completed.sh
#   echo ACTIONS_RUNNER_HOOK_JOB_COMPLETED=/usr/local/lib/artifacts-agent/job-completed.sh >> /home/ci/actions-runner/.env
#
# The control socket is the daemon's alone. With the systemd units, let the runner's user (here: ci) run this one command as the
# daemon's, with `sudo visudo -f /etc/sudoers.d/artifacts-agent`, or the hook can only say that it may not ask:
#
#   ci ALL=(artifacts-agent) NOPASSWD: /usr/local/bin/artifacts-agent flush --deadline 15s --job -
#
# What the cache did for the job, if its steps ran under `artifacts-agent exec`, goes to the log and to the job's summary.
#
# GitHub marks a job as failed whose hook fails. This one ends with 0 whatever happens: telemetry never changes a job's result. What
# is not delivered when the deadline passes stays in the queue, and the daemon goes on with it.
deadline=15s

ask() { # as this user, or as the daemon's where only sudo may; the job's variables say whose events are meant
  env | grep -E '^(ARTIFACTS_AGENT_JOB|GITHUB_(ACTIONS|SERVER_URL|REPOSITORY|RUN_ID|RUN_ATTEMPT|JOB)|RUNNER_NAME)=' | ask_of_job
}

ask_of_job() {
  if sudo -n -l -u artifacts-agent artifacts-agent flush --deadline "$deadline" --job - >/dev/null 2>&1; then
    sudo -n -u artifacts-agent artifacts-agent flush --deadline "$deadline" --job - 2>&1
  else
    artifacts-agent flush --deadline "$deadline" --job - 2>&1
  fi
}

if said=$(ask); then
  printf '%s\n' "$said"
else
  printf '%s\n' "$said" | sed '/^cache: /!s/^/::warning title=artifacts-agent::/'
fi
usage=$(printf '%s\n' "$said" | grep '^cache: ') || :
if [ -n "$usage" ] && [ -n "$GITHUB_STEP_SUMMARY" ]; then
  printf '**%s**. Tasks run in parallel: the build got shorter by less.\n\n' "$usage" >>"$GITHUB_STEP_SUMMARY" || :
fi
exit 0

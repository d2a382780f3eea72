#!/bin/sh
# artifacts-agent after a job of GitLab: waits until the events of the job have been delivered, and says in the job's log what
# became of them.
#
# Install it on the machine of the runner (shell executor):
#
#   sudo install -d /usr/local/lib/artifacts-agent
#   artifacts-agent hook gitlab | sudo install -m 0755 /dev/stdin /usr/local/lib/artifacts-agent/after-job.sh
#
# Then for some jobs, in .gitlab-ci.yml; it runs after failed jobs, too:
#
#   default:
#     after_script:
#       - /usr/local/lib/artifacts-agent/after-job.sh
#
# or for all jobs of the runner that do not fail, in its config.toml:
#
#   [[runners]]
#     post_build_script = "/usr/local/lib/artifacts-agent/after-job.sh"
#
# The control socket is the daemon's alone. With the systemd units, let the runner's user run this one command as the daemon's,
# with `sudo visudo -f /etc/sudoers.d/artifacts-agent`, or the hook can only say that it may not ask:
#
#   gitlab-runner ALL=(artifacts-agent) NOPASSWD: /usr/local/bin/artifacts-agent flush --deadline 15s --job -
#
# What the cache did for the job, if its scripts ran under `artifacts-agent exec`, is the title of a section of the log.
#
# It ends with 0 whatever happens: telemetry never changes a job's result. What is not delivered when the deadline passes stays in
# the queue, and the daemon goes on with it.
deadline=15s

ask() { # as this user, or as the daemon's where only sudo may; the job's variables say whose events are meant
  env | grep -E '^(ARTIFACTS_AGENT_JOB|GITLAB_CI|CI_JOB_NAME|CI_JOB_URL)=' | ask_of_job
}

ask_of_job() {
  if sudo -n -l -u artifacts-agent artifacts-agent flush --deadline "$deadline" --job - >/dev/null 2>&1; then
    sudo -n -u artifacts-agent artifacts-agent flush --deadline "$deadline" --job - 2>&1
  else
    artifacts-agent flush --deadline "$deadline" --job - 2>&1
  fi
}

said=$(ask) || said="$said
artifacts-agent: the job goes on"
usage=$(printf '%s\n' "$said" | grep '^cache: ') || :
if [ -n "$usage" ]; then # a section, which is folded: https://docs.gitlab.com/ci/jobs/job_logs/
  now=$(date +%s)
  printf '\033[0Ksection_start:%s:artifacts_agent_flush[collapsed=true]\r\033[0K%s\n' "$now" "$usage"
  printf '%s\n' "$said" | grep -v '^cache: ' || :
  printf '\033[0Ksection_end:%s:artifacts_agent_flush\r\033[0K\n' "$now"
else
  printf '%s\n' "$said"
fi
exit 0

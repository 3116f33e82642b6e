# Waits for its owner's end. Each line names the owner's shell: pid, start time, cgroup.
# An end of file: the owner was killed. Then what its running command started is ended;
# it has the timer slack that the shell has now. Jobs of earlier commands do not.
while read -r p s g; do shell=$p begun=$s group=$g; done
read -r line </proc/$shell/stat || exit 0
set -- ${line##*) }
[ "${20}" = "$begun" ] || exit 0
kill -STOP "$shell"
read -r tag </proc/$shell/timerslack_ns
each() {
	found=
	for p in $(list); do
		[ "$p" != "$shell" ] && read -r t </proc/$p/timerslack_ns && [ "$t" = "$tag" ] || continue
		found=1
		for s; do kill -"$s" "$p"; done
	done
	[ "$found" ]
}
list() {
	if [ "$group" ]; then
		while read -r p; do echo "$p"; done <"$group/cgroup.procs"
	else
		cd /proc && echo [0-9]*
	fi
}
n=0
if [ "$tag" ] && each STOP; then
	each TERM CONT
	while [ $n -lt 30 ] && each CONT; do
		sleep 0.1
		n=$((n + 1))
	done
	while each KILL CONT; do sleep 0.1; done
	kill -KILL "$shell"
fi
kill -CONT "$shell"

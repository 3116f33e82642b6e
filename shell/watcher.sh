# Waits for its owner's end. Each line names the owner's shell: pid, start time, cgroup.
# An end of file: the owner was killed. Then what its running command started is ended;
# it has the timer slack that the shell has now. Jobs of earlier commands do not.
while read -r p s g; do shell=$p begun=$s group=$g; done
read -r line </proc/$shell/stat || exit 0
set -- ${line##*) }
[ "${20}" = "$begun" ] || exit 0
kill -STOP "$shell"
read -r tag </proc/$shell/timerslack_ns
told=
each() { # to all that there are; SIGTERM once to each
	found=
	for p in $(list); do
		[ "$p" != "$shell" ] && read -r t </proc/$p/timerslack_ns && [ "$t" = "$tag" ] || continue
		found=1
		for s; do
			case $s,$told in
			TERM,*" $p "*) continue ;;
			TERM,*) told="$told $p " ;;
			esac
			kill -"$s" "$p"
		done
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
# A tag of a command, see group.go; 50000 is everybody's. An idle shell ends by itself.
if [ "${tag:-0}" -gt 50000 ] && [ "$tag" -le 100000 ]; then
	each STOP
	while [ $n -lt 30 ] && each TERM CONT; do # what was forked meanwhile too
		sleep 0.1
		n=$((n + 1))
	done
	while each KILL CONT; do sleep 0.1; done
	kill -KILL "$shell" # between two commands of its text it may have had none
fi
kill -CONT "$shell"

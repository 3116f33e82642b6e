# Sourced by what makes the tests' roots.

# aside TAR FUNCTION: in a file system in memory, call the function with a
# directory, in which it makes root/, and keep that as TAR. Prints TAR. Of several
# that do so at once, one does it.
aside() {
	mkdir -p "$(dirname "$1")"
	exec 9>"$1.lock"
	flock 9
	if [ ! -e "$1" ]; then
		work=$(mktemp -d "$1.XXXXXX")
		trap 'umount "$work"; rmdir "$work"' EXIT
		mount -t tmpfs -o size=3g,mode=755 deployx-test "$work"
		"$2" "$work"
		tar -C "$work/root" --numeric-owner --xattrs -cf "$1.tmp" .
		sync "$1.tmp"
		mv "$1.tmp" "$1"
	fi
	echo "$1"
}

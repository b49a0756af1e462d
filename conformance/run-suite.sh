#!/bin/bash
# run-suite.sh - run one of BuildKit's integration suites against one daemon, offline.
#
#   run-suite.sh [-run REGEX] BIN
#
#   BIN      a program that takes buildkitd's command line, such as dhow under the name buildkitd; every test
#            starts its own copy of it. Without BIN buildkitd is built from BUILDKIT_SRC: the reference, which
#            needs runc in PATH.
#   REGEX    run only the tests whose name matches; without it, those of dockerfile-visible.txt.
#
# Environment:
#   BUILDKIT_SRC    BuildKit source tree, with its vendor directory (required)
#   PKG, TESTNAME   the suite: frontend/dockerfile and TestIntegration unless they say client and TestIntegration,
#                   or client and TestClientGatewayIntegration
#   CONF            work directory, keep it short: unix sockets live below it   (default /tmp/conf)
#   PARALLEL        tests at a time                                             (default 2)
#   LIMIT           seconds for the whole run                                   (default 2700)
#   EACH            seconds for one pass: what hangs is a failure, and the rest is run again (default 90)
#   OUT             result table                                                (default $CONF/results.tsv)
#   CNI             directory of the CNI plugins that buildkitd uses            (default /usr/lib/cni)
#
# Needs root, Go, docker-registry, skopeo, busybox-static, python3, git, and unshare from util-linux. No network
# is used: the tests pull stand-in images, made from the host's static busybox, out of a registry that the harness
# starts. What needs more than that busybox has fails, for the reference too.
#
# Result: OUT with the columns test, pass|fail|skip, seconds, first line of the error; the raw logs in $CONF/log;
# as last line "N passed, N failed, N skipped". The exit status is 0 when nothing failed, 1 when a test failed, 2
# when the suite could not be run.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
self=$here/$(basename "$0")
CONF=$(realpath -m "${CONF:-/tmp/conf}")
PARALLEL=${PARALLEL:-2}
LIMIT=${LIMIT:-2700}
OUT=${OUT:-$CONF/results.tsv}
TOOLS=${TOOLS:-$here}
CNI=${CNI:-/usr/lib/cni}
PKG=${PKG:-frontend/dockerfile}
TESTNAME=${TESTNAME:-TestIntegration}
TESTBIN=$CONF/$(basename $PKG).test

# Stand-in images: the names the tests pull, and the archive of fill_mirror that serves for each.
IMAGES="
library/busybox:latest              busybox
library/busybox:stable-musl         busybox
library/alpine:latest               packages
amd64/debian:bullseye-20230109-slim alpine
tonistiigi/hellofs:latest           packages
cpuguy83/buildkit-foreign:latest    busybox
tonistiigi/test:nolayers            busybox
"

die() { echo "run-suite: $*" >&2; exit 2; }

parse_args() {
	regex= bin=
	while [ $# -gt 0 ]; do
		case $1 in
		-run) [ $# -ge 2 ] || die "-run needs a regular expression"; regex=$2; shift ;;
		-h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$self"; exit 0 ;;
		-*) die "unknown option $1" ;;
		*) bin=$1 ;;
		esac
		shift
	done
	[ -n "$regex" ] || regex="^($(paste -sd'|' "$here/dockerfile-visible.txt"))\$"
}

check_host() {
	[ "$(id -u)" = 0 ] || die "must run as root"
	[ -f "${BUILDKIT_SRC:?set BUILDKIT_SRC to a BuildKit source tree}/frontend/dockerfile/dockerfile_test.go" ] ||
		die "$BUILDKIT_SRC is not a BuildKit source tree"
	[ ${#CONF} -le 40 ] || die "CONF=$CONF is too long for the unix sockets below it"
	local p
	for p in go docker-registry skopeo busybox python3 git unshare; do
		command -v $p >/dev/null || die "$p is missing"
	done
}

# Everything runs in private namespaces: the daemons leave no mounts, bridges, firewall rules or processes
# behind, they cannot reach sockets of the host's own engines in /run, and a test that wants the Internet fails at
# once, on every machine.
enter_namespaces() {
	[ -n "${SUITE_ISOLATED:-}" ] ||
		SUITE_ISOLATED=1 exec unshare --mount --net --pid --fork --kill-child --mount-proc "$self" "$@"
	busybox ip link set lo up
	local conf resolv
	conf=$(cat /etc/resolv.conf 2>/dev/null || true)
	mount -t tmpfs -o mode=755 run /run
	resolv=$(realpath -m /etc/resolv.conf)
	if [ ! -e "$resolv" ]; then # it is a link into /run
		mkdir -p "$(dirname "$resolv")"
		echo "$conf" >"$resolv"
	fi
}

build() {
	local rev
	rev=73ed6825-$(basename $PKG)
	if [ ! -x "$TESTBIN" ]; then
		echo "building the tests of BuildKit $rev" >&2
		(
			cd "$BUILDKIT_SRC" &&
				go test -c -mod=vendor -buildvcs=false -tags $tags -o "$TESTBIN" ./$PKG &&
				go build -mod=vendor -buildvcs=false -tags $tags -o "$CONF/ref/" ./cmd/buildkitd ./cmd/buildctl
		) || die "cannot build BuildKit"
		echo "$rev" >"$CONF/built"
	fi
}

# The tests find these programs by name in PATH.
link_programs() {
	rm -rf "$CONF/bin"
	mkdir -p "$CONF/bin"
	ln -s "$(command -v docker-registry)" "$CONF/bin/registry"
	ln -s "$CONF/ref/buildctl" "$CONF/bin/buildctl"
	[ -n "$bin" ] || command -v runc >/dev/null || die "the reference needs runc"
	[ -z "$bin" ] || export BUILDKIT_RUN_NETWORK_INTEGRATION_TESTS=1
	bin=${bin:-$CONF/ref/buildkitd}
	[ -x "$bin" ] || die "$bin is not a program"
	ln -s "$(realpath "$bin")" "$CONF/bin/buildkitd"
	if [ -x "$CNI/bridge" ]; then
		setup_bridge
	fi
}

# Make buildkitd connect containers with a bridge, which the network tests look for.  A buildkitd that creates the
# bridge also removes it at its end, under the feet of those that run beside it; so it has to exist beforehand.
setup_bridge() {
	local plugin
	for plugin in bridge loopback host-local firewall; do
		ln -s "$CNI/$plugin" "$CONF/bin/buildkit-cni-$plugin"
	done
	busybox ip link add name buildkit0 type bridge
	mkdir -p /var/lib/cni
	mount -t tmpfs cni /var/lib/cni
	export BUILDKIT_NETWORK_BRIDGE_AUTO=1 BUILDKIT_CNI_INIT_LOCK_PATH=$CONF/cni.lock
	export BUILDKIT_RUN_NETWORK_INTEGRATION_TESTS=1
}

# add_program ROOT NAME: copy a program of the host, with the libraries it loads, into the tree ROOT.
add_program() {
	local file
	file=$(command -v "$2") || return 0
	{ echo "$file"; ldd "$file" | grep -o '/[^ ]*' || true; } | xargs cp -L --parents -t "$1"
}

# make_packages ALPINE OUT: the alpine image plus what the tests install with apk.
make_packages() {
	local root=$CONF/mirror/rootfs p
	mkdir -p "$root"
	tar -xOf "$1" --wildcards '*/layer.tar' | tar -xp -C "$root"
	for p in git ssh-add mkfs.ext4 fuse-overlayfs; do
		add_program "$root" $p
	done
	cat >"$root/sbin/apk" <<-'SH'
		#!/bin/sh
		# Succeeds for the packages that are in the image already.
		[ "$1" != update ] || exit 0
		[ "$1" = add ] || exit 99
		shift
		for p; do
			case $p in
			-*) continue ;;
			openssh-client-default) prog=ssh-add ;;
			e2fsprogs) prog=mkfs.ext4 ;;
			fuse) prog=fuse-overlayfs ;;
			*) prog=$p ;;
			esac
			command -v $prog >/dev/null || { echo "apk: no $p in this stand-in image" >&2; exit 99; }
		done
	SH
	# TestSSHFileDescriptorsClosed counts the agent connections of "ssh git@github.com", whatever the host answers.
	printf '#!/bin/sh\nexec ssh-add -l\n' >"$root/usr/bin/ssh"
	printf '#!/bin/sh\n' >"$root/usr/bin/ssh-keyscan"
	# TestInsecureDevicesWhitelist mounts this FUSE file system, which holds the file "hello".
	printf '#!/bin/sh\nmkdir /hello.d && echo hello >/hello.d/hello && exec fuse-overlayfs -f -o lowerdir=/hello.d "$1"\n' \
		>"$root/hellofs"
	chmod 755 "$root/sbin/apk" "$root/usr/bin/ssh" "$root/usr/bin/ssh-keyscan" "$root/hellofs"
	python3 "$TOOLS/mkimage.py" "$root" "$2" packages:latest >&2
}

# The harness mirrors its images from Docker Hub unless its registry directory has them already.
fill_mirror() {
	local dir=$CONF/mirror addr=127.0.0.1:5000 pid name archive
	[ ! -e "$dir/filled" ] || return 0
	rm -rf "$dir"
	mkdir -p "$dir"
	cat >"$dir/config.yaml" <<-YAML
		version: 0.1
		storage:
		    filesystem:
		        rootdirectory: $dir/data
		http:
		    addr: 127.0.0.1:0
	YAML
	python3 "$TOOLS/mkimage.py" busybox "$dir/busybox.tar" busybox:latest >&2
	python3 "$TOOLS/mkimage.py" alpine "$dir/alpine.tar" alpine:latest >&2
	make_packages "$dir/alpine.tar" "$dir/packages.tar"
	REGISTRY_HTTP_ADDR=$addr docker-registry serve "$dir/config.yaml" >"$CONF/log/mirror" 2>&1 &
	pid=$!
	until busybox wget -q -O /dev/null "http://$addr/v2/" 2>/dev/null; do
		kill -0 $pid 2>/dev/null || die "docker-registry ended, see $CONF/log/mirror"
		sleep 0.1
	done
	while read -r name archive; do
		[ -n "$name" ] || continue
		skopeo --insecure-policy copy -q --dest-tls-verify=false \
			"docker-archive:$dir/$archive.tar" "docker://$addr/$name" || die "cannot store $name"
	done <<<"$IMAGES"
	kill $pid
	wait $pid || true
	touch "$dir/filled"
}

# run_tests FRONTEND REGEX LOG: one run of the test binary; its events go to $CONF/log/LOG.json.
run_tests() {
	local left=$((deadline - SECONDS)) only=FRONTEND_BUILTIN_ONLY
	[ $left -gt 0 ] || return 0
	[ $left -le ${EACH:-90} ] || left=${EACH:-90}
	[ "$1" = builtin ] || only=FRONTEND_CLIENT_ONLY
	(
		cd "$BUILDKIT_SRC/$PKG"
		export HOME=$CONF/home TMPDIR=$CONF/tmp PATH=$CONF/bin:$PATH
		export $only=1 BUILDKIT_REGISTRY_MIRROR_DIR=$CONF/mirror
		"$TESTBIN" -test.v=test2json -test.parallel "$PARALLEL" -test.timeout "${left}s" \
			-test.run "^$TESTNAME\$/($2)/^worker=oci\$" 2>&1 || true
	) | go tool test2json -t >"$CONF/log/$3.json"
}

# run_pending FRONTEND LOG: a test that panics takes the unfinished ones with it; run those again.
run_pending() {
	local pending pass
	for pass in 2 3 4 5 6 7 8 9 10 11 12; do
		pending=$(table --pending)
		[ -n "$pending" ] && [ $SECONDS -lt $deadline ] || return 0
		echo "the tests ended early, pass $pass for $(wc -l <<<"$pending") of them" >&2
		run_tests "$1" "^(${pending//$'\n'/|})\$" "$2-$pass"
	done
}

table() {
	python3 "$here/gotest2tsv.py" --name "$name_regex" "$@" "$CONF"/log/*.json
}

tags=dfrundevice # makes the labs-only TestDeviceRunEnv part of the suite
# Names in the table: the test, plus the settings that make two tests of one function.
name_regex="$TESTNAME"'/(Test[^/]+)/worker=oci(?:/(?:frontend|env)=[^/]+)*((?:/[a-z.]+=[^/]+)*)'

parse_args "$@"
check_host
enter_namespaces "$@"
mkdir -p "$CONF/home" "$CONF/log"
rm -rf "$CONF/tmp" "$CONF"/log/*.json
mkdir -p "$CONF/tmp"
build
link_programs
fill_mirror

deadline=$((SECONDS + LIMIT))
run_tests builtin "$regex" 1-builtin
run_pending builtin 1-builtin

# The tests of subrequests (outline, targets) skip unless the client has a frontend.  Yet they ask the daemon's.
skipped=$(table | awk -F'\t' '$4 == "only test with client frontend" { print $1 }' || true)
if [ -n "$skipped" ]; then
	run_tests client "^(${skipped//$'\n'/|})\$" 2-client
	run_pending client 2-client
fi

status=0
table --out "$OUT" || status=$?
exit $status

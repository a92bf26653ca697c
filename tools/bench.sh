# ./dev bench: builds as for production, gets the yardsticks that are missing, measures, and leaves nothing behind.

# For the run's own directory, and for ending and removing whatever it has made.
source tools/test.sh

run_bench() {
    local argument option= names=() status=0 binaries
    # A word that the binary would refuse should not cost a build.
    for argument in "$@"; do
        if [ -n "$option" ]; then
            option=
            continue
        fi
        case $argument in
        engine | pickup | gateway | relay | models | upload) names+=("$argument") ;;
        --json) ;;
        --rounds=* | --jobs=* | --slots=* | --pickups=* | --seconds=* | --events=* | --pictures=* | --upload-mib=*) ;;
        --guildhall=* | --tools=* | --pg-bin=*) ;;
        --rounds | --jobs | --slots | --pickups | --seconds | --events | --pictures | --upload-mib) option=$argument ;;
        --guildhall | --tools | --pg-bin) option=$argument ;;
        *) refuse "bench takes no $argument" ;;
        esac
    done
    if [ -n "$option" ]; then refuse "$option needs a value"; fi
    # shellcheck disable=SC2046 # names of things, one word each
    need rust compiler postgres $(yardsticks_of "${names[*]:-engine pickup gateway relay models upload}")
    # What is measured is what is shipped: the release profile, and both in one build, so that they share their crates.
    cargo build ${locked[@]+"${locked[@]}"} --release -p guildhall -p bench >&2
    binaries=$(realpath "${CARGO_TARGET_DIR:-${CARGO_BUILD_TARGET_DIR:-target}}")/release
    begin
    set -m
    GUILDHALL_BENCH_TOOLS=${bench_tools:-} "$binaries/bench" "$@" </dev/null &
    job=$!
    set +m
    wait "$job" || status=$?
    job=
    nothing_runs_on || status=1
    clear_up
    trap - EXIT
    return $status
}

# yardsticks_of "NAME ...": what `need` has to make sure of for these benchmarks.
yardsticks_of() {
    case " $1 " in *" engine "* | *" pickup "*) echo node bench_tools ;; esac
    case " $1 " in *" gateway "* | *" upload "*) echo nginx ;; esac
    case " $1 " in *" gateway "*) echo wrk ;; esac
    case " $1 " in *" relay "*) echo rabbitmq ;; esac
}

need_wrk() {
    if command -v wrk >/dev/null; then return; fi
    install_package "wrk, which asks the gateway" apt:wrk dnf:wrk pacman:wrk apk:wrk brew:wrk
    if ! command -v wrk >/dev/null; then missing+=("wrk: $(how_to wrk)"); fi
}

# The npm packages of tools/bench-npm: graphile-worker, of one version with all that it needs.
need_bench_tools() {
    npm_packages tools/bench-npm bench-tools graphile-worker
    bench_tools=$npm_packages
}

# ./dev test and ./dev check: run the parts one after another, count, and leave nothing behind.

source tools/postgres.sh

passed=0
failed=0

run_check() {
    need rust rust_tools compiler
    begin
    part format
    part clippy
    part quick
    finish
}

run_tests() {
    local name names=("$@")
    if [ ${#names[@]} -eq 0 ]; then names=(format lints unit crates system); fi
    for name in "${names[@]}"; do
        case $name in
        format | lints | unit | crates | system | long) ;;
        *)
            say "there is no part $name; the parts are: format lints unit crates system long"
            exit 64
            ;;
        esac
    done
    need rust rust_tools compiler postgres rabbitmq nginx node test_tools
    begin
    start_s3
    export GUILDHALL_GLTF_VALIDATOR=$test_tools
    for name in "${names[@]}"; do
        # Once for all parts that run tests, so that their times are their own.
        case $name in unit | crates | system | long) build_once ;; esac
        part "$name"
    done
    finish
}

# --- parts -----------------------------------------------------------------------------------------------------------
# Each is a command that succeeds or fails; what cargo says of single tests is counted on the way.

part_format() {
    cargo fmt --all --check
}

part_clippy() {
    cargo clippy ${locked[@]+"${locked[@]}"} --workspace --all-targets -- -D warnings
}

# The lints, and in the same run every query against the schemas that the migrations make.
part_lints() {
    local dir=$run_dir/queries status=0
    mkdir -p "$dir/sqlx"
    chmod 711 "$dir"
    start_postgres "$dir" || return 1
    check_queries "$dir/sqlx" clippy ${locked[@]+"${locked[@]}"} --workspace --all-targets -- -D warnings || status=1
    stop_postgres
    if [ $status = 0 ] && ! diff -rq "$dir/sqlx" .sqlx; then
        say ".sqlx does not fit the queries and migrations: run ./dev prepare, and commit what it writes"
        status=1
    fi
    rm -rf "$dir"
    return $status
}

part_build() {
    cargo_test --no-run
}

part_unit() {
    local status=0
    cargo_test --lib --bins || status=1
    cargo_test --doc || status=1
    return $status
}

part_quick() {
    cargo_test --lib --bins
}

# One selection of packages for all parts: with another one, cargo would choose other features, and build all again.
part_crates() {
    # shellcheck disable=SC2046 # names of tests, one word each
    cargo_test $(test_names crates/guildhall others)
}

part_system() {
    # shellcheck disable=SC2046
    cargo_test $(test_names crates/guildhall own)
}

# The slow form: the suites once more and longer, and each weakening of the code met by the test that it names.
part_long() {
    local status=0 weakening
    GUILDHALL_TEST_LONG=1 part_crates || status=1
    GUILDHALL_TEST_LONG=1 part_system || status=1
    copy_tree "$run_dir/weakened"
    for weakening in tests/weakenings/*.patch; do
        [ -e "$weakening" ] || continue
        if weakening_is_caught "$weakening" "$run_dir/weakened"; then
            passed=$((passed + 1))
        else
            failed=$((failed + 1))
            status=1
        fi
    done
    return $status
}

# --- cargo -----------------------------------------------------------------------------------------------------------

cargo_test() {
    local log=$run_dir/cargo.log status=0
    cargo test ${locked[@]+"${locked[@]}"} --workspace --no-fail-fast "$@" 2>&1 | tee "$log" || status=1
    # test result: ok. 12 passed; 0 failed; 1 ignored; ...
    grep -a '^test result: ' "$log" | sed 's/.*\. \([0-9]*\) passed; \([0-9]*\) failed.*/\1 \2/' >>"$run_dir/counts" || true
    return $status
}

# test_names CRATE own|others: --test arguments for the integration tests of the crate, or of all others.
test_names() {
    local file name
    for file in crates/*/tests/*.rs crates/*/tests/*/main.rs; do
        [ -e "$file" ] || continue
        case $file in "$1"/*) [ "$2" = own ] || continue ;; *) [ "$2" = others ] || continue ;; esac
        name=${file%/main.rs}
        printf -- '--test %s ' "$(basename "$name" .rs)"
    done
}

# --- weakenings ------------------------------------------------------------------------------------------------------
# A patch that takes a promise out of the code. Its lines before the diff say what it weakens, and name the test that
# must fail then as cargo's arguments for it. It is built apart: cargo would tell a weakened build from a whole one by
# the age of files alone.
#     Fails: --test private_postgres killing_the_owner_leaves_no_process

copy_tree() {
    mkdir -p "$1"
    git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
        # A file that was removed and not yet committed is listed, too.
        [ -e "$file" ] && printf '%s\0' "$file"
    done | tar --null -T - -cf - | tar -xmf - -C "$1" # as new files, or cargo would take older weakenings' builds for fresh
}

weakening_is_caught() {
    local weakening=$1 tree=$2 fails name log=$run_dir/weakening.log caught=1
    fails=$(sed -n 's/^Fails: //p' "$weakening" | head -n 1)
    name=${fails##* }
    printf '\n--- weakened by %s\n' "$(basename "$weakening")"
    if [ -z "$fails" ] || ! (cd "$tree" && git apply "$OLDPWD/$weakening"); then
        say "$weakening names no test, or does not fit the code any more"
        return 1
    fi
    # shellcheck disable=SC2086 # the line holds arguments
    if (cd "$tree" && CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$OLDPWD/target}/weakened cargo test --workspace $fails) \
        >"$log" 2>&1; then
        say "no test has noticed: $fails passes"
    elif grep -qaE "^test (.*::)?$name.* FAILED" "$log"; then
        echo "caught by $name"
        caught=0
    else
        tail -n 40 "$log"
        say "the test $name was to fail, and something else did"
    fi
    (cd "$tree" && git apply -R "$OLDPWD/$weakening")
    return $caught
}

# --- the run ---------------------------------------------------------------------------------------------------------

# Everything that is made for this run lives in one directory, and every process that is started carries its name.
begin() {
    run_dir=$(mktemp -d)
    # The Postgres of a root's tests runs as another user, who has to pass through.
    chmod 711 "$run_dir"
    export TMPDIR=$run_dir/tmp GUILDHALL_DEV_RUN=$run_dir
    mkdir "$TMPDIR"
    chmod 711 "$TMPDIR"
    : >"$run_dir/counts"
    : >"$run_dir/times"
    job=
    trap clear_up EXIT
    trap 'interrupted 130' INT
    trap 'interrupted 143' TERM HUP
}

# part NAME: runs part_NAME as a job of its own, so that an interrupt reaches it and all that it has started.
part() {
    local name=$1 before=$SECONDS status=0 counted counts
    printf '\n=== %s\n' "$name"
    counted=$(wc -l <"$run_dir/counts")
    set -m
    (
        set +m
        trap - EXIT
        trap 'stop_postgres' EXIT
        trap 'exit 143' TERM
        status=0
        passed=0
        failed=0
        "part_$name" || status=1
        if [ $((passed + failed)) -gt 0 ]; then echo "$passed $failed" >>"$run_dir/counts"; fi
        exit $status
    ) </dev/null &
    job=$!
    set +m
    wait "$job" || status=$?
    job=

    counts=$(tail -n +$((counted + 1)) "$run_dir/counts" | awk '{ p += $1; f += $2 } END { print p + 0, f + 0 }')
    passed=$((passed + ${counts% *}))
    failed=$((failed + ${counts#* }))
    if [ "$status" != 0 ] && [ "${counts#* }" = 0 ]; then
        # It failed as a whole: it did not build, or is no suite of tests.
        failed=$((failed + 1))
    elif [ "$status" = 0 ] && [ "$counts" = "0 0" ] && [ "$name" != build ]; then
        passed=$((passed + 1))
    fi
    printf '%-8s %4d s   %s\n' "$name" $((SECONDS - before)) "$([ "$status" = 0 ] && echo passed || echo FAILED)" \
        >>"$run_dir/times"
}

build_once() {
    if [ -z "${is_built:-}" ]; then
        is_built=yes
        part build
    fi
}

# A real server that speaks S3, on a free port.
start_s3() {
    local log=$run_dir/s3.log tries=0 port
    mkdir "$run_dir/s3"
    : >"$log"
    node "$test_tools/node_modules/s3rver/bin/s3rver.js" --address 127.0.0.1 --port 0 --directory "$run_dir/s3" \
        --configure-bucket guildhall </dev/null >"$log" 2>&1 &
    s3_job=$!
    until port=$(sed -n 's/.*listening on 127\.0\.0\.1:\([0-9]*\).*/\1/p' "$log") && [ -n "$port" ]; do
        tries=$((tries + 1))
        if [ $tries -gt 100 ] || ! kill -0 $s3_job 2>/dev/null; then
            cat "$log" >&2
            say "the tests' S3 server did not start; its words stand above"
            exit 1
        fi
        sleep 0.1
    done
    export GUILDHALL_TEST_S3_URL="s3://guildhall?endpoint=http://127.0.0.1:$port&region=us-east-1"
    export GUILDHALL_TEST_S3_ACCESS_KEY=S3RVER GUILDHALL_TEST_S3_SECRET_KEY=S3RVER
}

stop_s3() {
    if [ -n "${s3_job:-}" ]; then
        kill "$s3_job" 2>/dev/null || true
        wait "$s3_job" 2>/dev/null || true
        s3_job=
    fi
}

finish() {
    stop_s3
    if ! nothing_runs_on; then failed=$((failed + 1)); fi
    printf '\n'
    cat "$run_dir/times"
    clear_up
    trap - EXIT
    printf '%d passed, %d failed\n' "$passed" "$failed"
    [ "$failed" = 0 ]
}

# What a test has started must have ended soon after it. Says what has not, and ends it.
nothing_runs_on() {
    local tries=0 pid
    while [ -n "$(survivors)" ] && [ $tries -lt 100 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    [ -n "$(survivors)" ] || return 0
    for pid in $(survivors); do
        say "left running by a test: $pid $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | cut -c 1-200)"
    done
    end_survivors
    return 1
}

# The processes that were started in this run with its mark in their environment.
survivors() {
    local file pid
    for file in $(grep -lazF "GUILDHALL_DEV_RUN=$run_dir" /proc/[0-9]*/environ 2>/dev/null); do
        pid=${file#/proc/}
        pid=${pid%/environ}
        # The search itself is over by now.
        if [ -d "/proc/$pid" ] && [ "$pid" != "${s3_job:-}" ]; then echo "$pid"; fi
    done
}

end_survivors() {
    local signal tries pids
    for signal in TERM KILL; do
        pids=$(survivors)
        [ -n "$pids" ] || return 0
        # shellcheck disable=SC2086 # numbers
        kill -s $signal $pids 2>/dev/null || true
        tries=0
        while [ -n "$(survivors)" ] && [ $tries -lt 50 ]; do
            tries=$((tries + 1))
            sleep 0.1
        done
    done
}

interrupted() {
    trap '' INT TERM HUP
    say "interrupted; clearing up"
    if [ -n "$job" ]; then
        kill -s TERM -- "-$job" 2>/dev/null || true
        wait "$job" 2>/dev/null || true
    fi
    exit "$1"
}

clear_up() {
    local tries=0 note
    stop_s3
    end_survivors
    # Where a test was killed whose cluster had to live elsewhere, the note of whose it is stays with it.
    for note in /var/lib/guildhall/*/data_directory; do
        if grep -qsF "$run_dir/" "$note"; then rm -rf "$(dirname "$note")"; fi
    done
    # A server that is just ending may still write.
    until rm -rf "$run_dir" 2>/dev/null || [ $tries -ge 50 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
}

# A throw-away Postgres with every service's schema in it, for the compile-time check of queries. Tests make their own.

# start_postgres DIRECTORY: sets postgres_url; DIRECTORY is one that the user of Postgres can reach.
start_postgres() {
    local dir=$1 bin
    bin=$(find_postgres)
    mkdir "$dir/cluster" "$dir/socket"
    chmod 700 "$dir/cluster" "$dir/socket"
    if [ "$(id -u)" = 0 ]; then chown "$(postgres_user)" "$dir/cluster" "$dir/socket"; fi
    as_postgres "$bin/initdb" -D "$dir/cluster" -U guildhall -E UTF8 --locale=C --auth=trust --no-sync \
        --no-instructions >"$dir/log" 2>&1 || { fail_postgres "$dir" && return 1; }

    # In single-user mode, so that no client program is needed. Without blank lines a whole file is one command, which
    # is how the services send it, too.
    local migrations schema
    for migrations in crates/*/migrations; do
        [ -d "$migrations" ] || continue
        schema=$(basename "$(dirname "$migrations")")
        {
            echo "create schema if not exists $schema; set search_path to $schema;"
            cat "$migrations"/*.sql
        } | sed '/^[[:space:]]*$/d' >"$dir/$schema.sql"
        as_postgres "$bin/postgres" --single -j -D "$dir/cluster" -c exit_on_error=on -c log_min_messages=error postgres \
            <"$dir/$schema.sql" >"$dir/log" 2>&1 || { fail_postgres "$dir" && return 1; }
    done

    as_postgres "$bin/postgres" -D "$dir/cluster" -k "$dir/socket" -c listen_addresses= -c port=5432 -c fsync=off \
        </dev/null >"$dir/log" 2>&1 &
    postgres_job=$!
    postgres_pid_file=$dir/cluster/postmaster.pid
    local tries=0
    until grep -qs ready "$postgres_pid_file"; do
        tries=$((tries + 1))
        if [ $tries -gt 300 ] || ! kill -0 "$postgres_job" 2>/dev/null; then fail_postgres "$dir" && return 1; fi
        sleep 0.1
    done
    postgres_url="postgresql://guildhall@localhost:5432/postgres?host=$dir/socket&sslmode=disable"
}

# Safe to call when none runs.
stop_postgres() {
    if [ -n "${postgres_job:-}" ]; then
        kill -INT "$(head -n 1 "$postgres_pid_file")" 2>/dev/null || true
        wait "$postgres_job" 2>/dev/null || true
        postgres_job=
    fi
}

fail_postgres() {
    cat "$1/log" >&2
    say "the Postgres for checking queries did not start; its words stand above"
}

# check_queries DIRECTORY CARGO-ARGUMENTS...: runs cargo so that every query is checked against the schemas, and what is
# learnt about it written to DIRECTORY. Cargo does not know that a database has changed, so the files with queries are
# made to look new, and old again for the builds that need no database.
check_queries() {
    local dir=$1 file status=0 times
    shift
    times=$(mktemp -d)
    while read -r file; do
        mkdir -p "$times/$(dirname "$file")"
        touch -r "$file" "$times/$file"
        touch "$file"
    done < <(files_with_queries)
    SQLX_OFFLINE=false DATABASE_URL=$postgres_url SQLX_OFFLINE_DIR=$dir cargo "$@" || status=$?
    while read -r file; do touch -r "$times/$file" "$file"; done < <(files_with_queries)
    rm -rf "$times"
    return $status
}

files_with_queries() {
    grep -rlE --include='*.rs' '\bquery(_as|_scalar|_file|_file_as|_file_scalar)?(_unchecked)?!' crates || true
}

# As the kernel sees it: root's Postgres runs as the user that packages make for it, or the one that owns nothing.
postgres_user() {
    if id postgres >/dev/null 2>&1; then echo postgres; else echo nobody; fi
}

as_postgres() {
    if [ "$(id -u)" = 0 ]; then
        exec_as "$(postgres_user)" "$@"
    else
        "$@"
    fi
}

# exec_as USER COMMAND...: in coreutils, and unlike su it leaves no process in between that would swallow a signal.
exec_as() {
    local user=$1
    shift
    chroot --userspec="$(id -u "$user"):$(id -g "$user")" --groups= / "$@"
}

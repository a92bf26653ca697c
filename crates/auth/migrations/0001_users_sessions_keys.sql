-- Who is asking. Owned by the role of `auth` alone: password hashes, private keys and token hashes live here.

create table auth.user (
  id uuid primary key,
  -- Normalised to lower case before it is stored, so that uniqueness does not hang on case.
  email text not null,
  display_name text not null,
  -- A PHC string: the parameters stand beside the hash, so that they may change.
  password_hash text not null,
  created_at timestamptz not null,
  constraint user_email_key unique (email),
  constraint user_email_is_lower_case check (email = lower(email))
);

create table auth.user_role (
  user_id uuid not null references auth.user (id) on delete cascade,
  role text not null,
  granted_at timestamptz not null,
  primary key (user_id, role)
);
create index user_role_role on auth.user_role (role);

-- A session and its refresh family are one: `generation` counts its exchanges and `last_used_at` is the last of them.
create table auth.session (
  id uuid primary key,
  user_id uuid not null references auth.user (id) on delete cascade,
  created_at timestamptz not null,
  last_used_at timestamptz not null,
  expires_at timestamptz not null,
  remote_address text not null,
  user_agent text not null,
  generation bigint not null default 0,
  ended_at timestamptz,
  end_reason text,
  -- The transaction that ended it: a reader that remembers its last snapshot misses no end, however late it commits.
  ended_in xid8,
  constraint session_ends_whole check (num_nulls(ended_at, end_reason, ended_in) in (0, 3))
);
create index session_user_live on auth.session (user_id, id) where ended_at is null;
create index session_ended_at on auth.session (ended_at) where ended_at is not null;
create index session_ended_in on auth.session (ended_in) where ended_in is not null;
create index session_expires_at on auth.session (expires_at);

-- Every refresh token of every live family, the spent ones too: a spent one that comes back is how theft shows.
create table auth.refresh_token (
  -- SHA-256 of the token; the token itself is stored nowhere.
  hash bytea primary key check (octet_length(hash) = 32),
  session_id uuid not null references auth.session (id) on delete cascade,
  generation bigint not null,
  -- One child for a parent, whoever races.
  constraint refresh_token_one_child unique (session_id, generation)
);

-- Leaky buckets of login attempts. `key` is a hash, so that no address and no account is listed here.
create table auth.login_throttle (
  key bytea primary key check (octet_length(key) = 32),
  -- When the bucket will have run empty.
  empty_at timestamptz not null
);
create index login_throttle_empty_at on auth.login_throttle (empty_at);

-- Ed25519 keys that sign access tokens. One signs; those with a `retired_at` only verify, until then.
create table auth.signing_key (
  -- The key's thumbprint (RFC 7638).
  kid text primary key,
  -- The 32 bytes of RFC 8032, section 5.1.5.
  private_key bytea not null check (octet_length(private_key) = 32),
  created_at timestamptz not null,
  retired_at timestamptz
);
-- However many processes start at once, they agree on one.
create unique index signing_key_one_signs on auth.signing_key ((true)) where retired_at is null;

-- Symmetric keys of the service: what they are for, and the key.
create table auth.server_key (
  purpose text primary key,
  key bytea not null check (octet_length(key) = 32),
  created_at timestamptz not null
);

create table auth.service_account (
  id uuid primary key,
  name text not null,
  created_at timestamptz not null,
  constraint service_account_name_key unique (name)
);

create table auth.service_key (
  id uuid primary key,
  account_id uuid not null references auth.service_account (id) on delete cascade,
  -- SHA-256 of the whole key: it holds 256 random bits, so a slow hash would add nothing.
  hash bytea not null check (octet_length(hash) = 32),
  scope text[] not null,
  created_at timestamptz not null,
  -- A changed key takes the place of the account's former one.
  constraint service_key_account_key unique (account_id)
);

create table auth.outbox (
  id uuid primary key,
  type text not null,
  subject text not null,
  data bytea not null,
  traceparent text,
  at timestamptz not null
);
create index outbox_at on auth.outbox (at);

create table auth.idempotency_key (
  caller uuid not null,
  key text not null,
  digest bytea not null,
  code text,
  answer bytea not null,
  created_at timestamptz not null,
  primary key (caller, key)
);
create index idempotency_key_created_at on auth.idempotency_key (created_at);

--
-- PostgreSQL database dump
--


-- Dumped from database version 15.18 (Debian 15.18-0+deb12u1)
-- Dumped by pg_dump version 15.18 (Debian 15.18-0+deb12u1)

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: account; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.account (
    id character varying(36) NOT NULL,
    email text NOT NULL,
    email_key text NOT NULL,
    plan character varying(100) NOT NULL,
    status character varying(20) NOT NULL,
    balance bigint NOT NULL,
    ledger_seq bigint NOT NULL,
    ledger_head character varying(64) NOT NULL,
    day integer NOT NULL,
    day_messages integer NOT NULL,
    created_at_us bigint NOT NULL
);


--
-- Name: alembic_version; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);


--
-- Name: api_key; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.api_key (
    id character varying(36) NOT NULL,
    account_id character varying(36) NOT NULL,
    name character varying(100) NOT NULL,
    secret_hash bytea NOT NULL,
    last_five character varying(5) NOT NULL,
    status character varying(20) NOT NULL,
    permissions text,
    senders text,
    addresses text,
    expires_at_us bigint,
    created_at_us bigint NOT NULL,
    last_used_at_us bigint,
    last_used_ip character varying(45),
    last_used_door character varying(10)
);


--
-- Name: audit; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.audit (
    account_id character varying(36) NOT NULL,
    seq bigint NOT NULL,
    at_us bigint NOT NULL,
    user_id character varying(36),
    actor text NOT NULL,
    ip character varying(45) NOT NULL,
    via character varying(10) NOT NULL,
    action character varying(60) NOT NULL,
    subject text NOT NULL,
    data text NOT NULL,
    hash character varying(64) NOT NULL
);


--
-- Name: audit_head; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.audit_head (
    account_id character varying(36) NOT NULL,
    seq bigint NOT NULL,
    hash character varying(64) NOT NULL
);


--
-- Name: body; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.body (
    id bigint NOT NULL,
    message_id character varying(16) NOT NULL,
    n integer NOT NULL,
    at_us bigint NOT NULL,
    data bytea NOT NULL
);


--
-- Name: body_id_seq; Type: SEQUENCE; Schema: public; Owner: -
--

CREATE SEQUENCE public.body_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;


--
-- Name: body_id_seq; Type: SEQUENCE OWNED BY; Schema: public; Owner: -
--

ALTER SEQUENCE public.body_id_seq OWNED BY public.body.id;


--
-- Name: cap; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.cap (
    cap_key text NOT NULL,
    daily_cap integer NOT NULL,
    next_us bigint
);


--
-- Name: cap_use; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.cap_use (
    cap_key text NOT NULL,
    message_id character varying(16) NOT NULL,
    at_us bigint NOT NULL
);


--
-- Name: counter; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.counter (
    name character varying(40) NOT NULL,
    value bigint NOT NULL
);


--
-- Name: dkim_key; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.dkim_key (
    domain character varying(255) NOT NULL,
    selector character varying(63) NOT NULL,
    algorithm character varying(20) NOT NULL,
    sealed_key bytea NOT NULL,
    public_key text NOT NULL,
    state character varying(20) NOT NULL,
    created_at_us bigint NOT NULL,
    checked_at_us bigint,
    changed_at_us bigint NOT NULL
);


--
-- Name: event; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.event (
    seq bigint NOT NULL,
    message_id character varying(16) NOT NULL,
    account_id character varying(36) NOT NULL,
    at_us bigint NOT NULL,
    kind character varying(20) NOT NULL,
    data text NOT NULL
);


--
-- Name: event_seq_seq; Type: SEQUENCE; Schema: public; Owner: -
--

CREATE SEQUENCE public.event_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;


--
-- Name: event_seq_seq; Type: SEQUENCE OWNED BY; Schema: public; Owner: -
--

ALTER SEQUENCE public.event_seq_seq OWNED BY public.event.seq;


--
-- Name: idempotency; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.idempotency (
    word text NOT NULL,
    key_id character varying(36) NOT NULL,
    fingerprint bytea NOT NULL,
    message_id character varying(16) NOT NULL,
    at_us bigint NOT NULL
);


--
-- Name: ledger; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.ledger (
    account_id character varying(36) NOT NULL,
    seq bigint NOT NULL,
    amount bigint NOT NULL,
    balance_after bigint NOT NULL,
    reason character varying(20) NOT NULL,
    message_id character varying(16),
    granted_by text,
    note text,
    at_us bigint NOT NULL,
    hash character varying(64) NOT NULL
);


--
-- Name: login_session; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.login_session (
    id character varying(36) NOT NULL,
    user_id character varying(36) NOT NULL,
    kind character varying(10) NOT NULL,
    ip character varying(45) NOT NULL,
    agent character varying(200) NOT NULL,
    created_at_us bigint NOT NULL,
    seen_at_us bigint NOT NULL,
    ends_at_us bigint NOT NULL,
    ended_at_us bigint,
    ended_by character varying(20)
);


--
-- Name: login_try; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.login_try (
    id character varying(36) NOT NULL,
    client character varying(49) NOT NULL,
    email_hash bytea NOT NULL,
    counts_client boolean NOT NULL,
    is_code boolean NOT NULL,
    at_us bigint NOT NULL
);


--
-- Name: message; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.message (
    id character varying(16) NOT NULL,
    account_id character varying(36) NOT NULL,
    key_id character varying(36) NOT NULL,
    key_name character varying(100) NOT NULL,
    key_last_five character varying(5) NOT NULL,
    door character varying(10) NOT NULL,
    sender text NOT NULL,
    route character varying(100) NOT NULL,
    reverse_path text NOT NULL,
    subject text NOT NULL,
    header_message_id text NOT NULL,
    size bigint NOT NULL,
    smtputf8 boolean NOT NULL,
    recipients integer NOT NULL,
    state character varying(20) NOT NULL,
    waiting integer NOT NULL,
    failed integer NOT NULL,
    accepted_at_us bigint NOT NULL,
    expires_at_us bigint NOT NULL,
    finished_at_us bigint,
    body_until_us bigint,
    answer text
);


--
-- Name: one_time_link; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.one_time_link (
    token_hash bytea NOT NULL,
    user_id character varying(36) NOT NULL,
    purpose character varying(10) NOT NULL,
    created_at_us bigint NOT NULL,
    expires_at_us bigint NOT NULL,
    used_at_us bigint
);


--
-- Name: pause; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.pause (
    route character varying(100) NOT NULL,
    destination text NOT NULL,
    since_us bigint NOT NULL,
    note text NOT NULL
);


--
-- Name: process; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.process (
    id character varying(40) NOT NULL,
    alive_until_us bigint NOT NULL
);


--
-- Name: queue; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.queue (
    message_id character varying(16) NOT NULL,
    destination text NOT NULL,
    account_id character varying(36) NOT NULL,
    route character varying(100) NOT NULL,
    due_at_us bigint NOT NULL,
    owner character varying(40),
    token bigint NOT NULL,
    marked boolean NOT NULL,
    cap_key text NOT NULL,
    line_us bigint,
    accepted_at_us bigint NOT NULL,
    expires_at_us bigint NOT NULL
);


--
-- Name: rate_call; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.rate_call (
    key_id character varying(36) NOT NULL,
    at_us bigint NOT NULL,
    calls integer NOT NULL,
    total bigint NOT NULL
);


--
-- Name: recipient; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.recipient (
    message_id character varying(16) NOT NULL,
    n integer NOT NULL,
    address text NOT NULL,
    kind character varying(5) NOT NULL,
    destination text NOT NULL,
    state character varying(20) NOT NULL,
    attempts integer NOT NULL,
    doubts integer NOT NULL,
    due_at_us bigint,
    last_reply text,
    changed_at_us bigint NOT NULL
);


--
-- Name: recovery_code; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.recovery_code (
    user_id character varying(36) NOT NULL,
    code_hash bytea NOT NULL,
    used_at_us bigint
);


--
-- Name: refresh_token; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.refresh_token (
    token_hash bytea NOT NULL,
    session_id character varying(36) NOT NULL,
    created_at_us bigint NOT NULL,
    used_at_us bigint,
    successor bytea
);


--
-- Name: sender; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.sender (
    id bigint NOT NULL,
    account_id character varying(36) NOT NULL,
    address text NOT NULL,
    address_key text NOT NULL,
    route character varying(100) NOT NULL,
    daily_cap integer NOT NULL,
    is_default boolean NOT NULL
);


--
-- Name: sender_id_seq; Type: SEQUENCE; Schema: public; Owner: -
--

CREATE SEQUENCE public.sender_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;


--
-- Name: sender_id_seq; Type: SEQUENCE OWNED BY; Schema: public; Owner: -
--

ALTER SEQUENCE public.sender_id_seq OWNED BY public.sender.id;


--
-- Name: sts_policy; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.sts_policy (
    domain character varying(255) NOT NULL,
    policy_id character varying(32) NOT NULL,
    policy text NOT NULL,
    fetched_at_us bigint NOT NULL,
    expires_at_us bigint NOT NULL
);


--
-- Name: suppression; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.suppression (
    account_id character varying(36) NOT NULL,
    address_key text NOT NULL,
    address text NOT NULL,
    refusals integer NOT NULL,
    refused_at_us bigint NOT NULL,
    suppressed_until_us bigint,
    last_reply text NOT NULL,
    message_id character varying(16) NOT NULL,
    kept_until_us bigint NOT NULL
);


--
-- Name: tally; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.tally (
    account_id character varying(36) NOT NULL,
    span_s integer NOT NULL,
    at_us bigint NOT NULL,
    sent integer NOT NULL,
    waiting integer NOT NULL,
    in_doubt integer NOT NULL,
    failed integer NOT NULL,
    recount_at_us bigint
);


--
-- Name: token_key; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.token_key (
    id character varying(22) NOT NULL,
    public_key bytea NOT NULL,
    until_us bigint NOT NULL
);


--
-- Name: user_account; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.user_account (
    id character varying(36) NOT NULL,
    account_id character varying(36) NOT NULL,
    email text NOT NULL,
    email_key text NOT NULL,
    first_name text DEFAULT ''::text NOT NULL,
    surname text DEFAULT ''::text NOT NULL,
    password_hash text,
    scope character varying(20) NOT NULL,
    is_operator boolean NOT NULL,
    is_verified boolean DEFAULT false NOT NULL,
    status character varying(20) DEFAULT 'active'::character varying NOT NULL,
    totp_sealed bytea,
    totp_since_us bigint,
    totp_step bigint DEFAULT '0'::bigint NOT NULL,
    created_at_us bigint NOT NULL,
    modified_at_us bigint NOT NULL
);


--
-- Name: body id; Type: DEFAULT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.body ALTER COLUMN id SET DEFAULT nextval('public.body_id_seq'::regclass);


--
-- Name: event seq; Type: DEFAULT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.event ALTER COLUMN seq SET DEFAULT nextval('public.event_seq_seq'::regclass);


--
-- Name: sender id; Type: DEFAULT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.sender ALTER COLUMN id SET DEFAULT nextval('public.sender_id_seq'::regclass);


--
-- Data for Name: account; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.account VALUES ('f8e368c2-4c27-4dd5-abad-4fb9dda580bb', 'other@elsewhere.example', 'other@elsewhere.example', 'standard', 'active', 10, 1, 'c9d411cfc6e51dd85c953cd3c683bf0f6a9562613ea9d5911956776b8d8355ff', 0, 0, 1795669280655818);
INSERT INTO public.account VALUES ('b020497a-1bde-4de0-b6a6-f4a60d57f518', 'operator@example.com', 'operator@example.com', 'standard', 'active', 0, 0, '0000000000000000000000000000000000000000000000000000000000000000', 0, 0, 1795669280848082);
INSERT INTO public.account VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 'owner@example.com', 'owner@example.com', 'standard', 'active', 91, 11, '63528de30bbded224e5fadd64fe2318a9ca8e75756b0349b3717579722f30ba8', 20783, 9, 1795669280180906);


--
-- Data for Name: alembic_version; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.alembic_version VALUES ('0001');


--
-- Data for Name: api_key; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.api_key VALUES ('4a549297-d815-4d44-8b58-17e45fc46de4', '458a6969-c080-47f7-9d5d-efd83d60adeb', 'disabled', '\x517821ff65e2e43b60832599f322afe785f44e49a7bfa84401fbd8fbf86e3775', 'Rf4KT', 'disabled', '["smtp"]', NULL, '["192.0.2.0/24"]', NULL, 1795669281089416, NULL, NULL, NULL);
INSERT INTO public.api_key VALUES ('8189235a-8df9-40e4-8ddb-39d6b07ceb7c', '458a6969-c080-47f7-9d5d-efd83d60adeb', 'app', '\x52051b05581a288f6cf7d650e7c8814ea2510e77a50c05f092ced9fcec5ec80b', 'SFbpA', 'active', NULL, NULL, NULL, NULL, 1795669280428094, 1795669295030668, '127.0.0.1', 'http');


--
-- Data for Name: audit; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.audit VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 1, 1795669280251434, NULL, 'command line (root)', '', 'cli', 'account.add', 'owner@example.com', '{"credits":100,"operator":false,"plan":"standard"}', 'f87005c3860218596ad3ec470f99d9f751439e14d12dff7b6affb5efb85bff84');
INSERT INTO public.audit VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 2, 1795669280480879, NULL, 'command line (root)', '', 'cli', 'key.mint', 'app', '{"addresses":null,"expires_at_us":null,"key":"8189235a-8df9-40e4-8ddb-39d6b07ceb7c","permissions":null,"senders":null}', '4c5916bcd0f7ce4f77452f3ff726caf469f6b149818a708d91e46e191f242fe0');
INSERT INTO public.audit VALUES ('f8e368c2-4c27-4dd5-abad-4fb9dda580bb', 1, 1795669280711324, NULL, 'command line (root)', '', 'cli', 'account.add', 'other@elsewhere.example', '{"credits":10,"operator":false,"plan":"standard"}', '6cf028599286518790e14b3941681ee20a016ae0e777409b4cb1409c86564cf5');
INSERT INTO public.audit VALUES ('b020497a-1bde-4de0-b6a6-f4a60d57f518', 1, 1795669280870865, NULL, 'command line (root)', '', 'cli', 'account.add', 'operator@example.com', '{"credits":0,"operator":true,"plan":"standard"}', '426c20a744c13dd7c181da88848a34151fac36294e3245929b96980e89b559d9');
INSERT INTO public.audit VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 3, 1795669281157129, NULL, 'command line (root)', '', 'cli', 'key.mint', 'disabled', '{"addresses":["192.0.2.0/24"],"expires_at_us":null,"key":"4a549297-d815-4d44-8b58-17e45fc46de4","permissions":["smtp"],"senders":null}', '4516a8dbeb88a41c15f420940d0407ffc6b3b8a59251861820889dd5b8235c63');
INSERT INTO public.audit VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 4, 1795669281583945, NULL, 'command line (root)', '', 'cli', 'key.disable', 'disabled', '{"key":"4a549297-d815-4d44-8b58-17e45fc46de4"}', '45ad19216933bc3fa7f4c840c2383cff201251ca68d0c67c6897bd71fb0bc18a');
INSERT INTO public.audit VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 5, 1795669281921066, NULL, 'command line (root)', '', 'cli', 'sender.put', 'capped@example.com', '{"daily_cap":1,"default":false,"route":"sink"}', 'a74bdf0a1931bb34c5dbdf5f8ea356f45d0ea871136aaba6b3e7d50072da362e');
INSERT INTO public.audit VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 6, 1795669282153178, NULL, 'command line (root)', '', 'cli', 'sender.put', 'late@example.com', '{"daily_cap":0,"default":false,"route":"away"}', 'bf341892bccc94afc993e23a433b10a87013b043bf1ed86c6846cd431fdf58f0');
INSERT INTO public.audit VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 7, 1795669282429596, NULL, 'command line (root)', '', 'cli', 'suppression.add', 'gone@example.net', '{"reason":"an operator said so","until_us":1796878882364823}', 'd70e9d53c22f336ca84071314be9256562880412cc3a846534f4c990f489b529');
INSERT INTO public.audit VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 8, 1795669288683151, NULL, 'command line (root)', '', 'cli', 'user.invite', 'reader@example.com', '{"scope":"read_only"}', '8abd15500ad1a0cc12131963f22617663d2012f5c69e04423a46458d3a3d20af');
INSERT INTO public.audit VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 9, 1795669289378203, NULL, 'command line (root)', '', 'cli', 'user.link', 'owner@example.com', '{"purpose":"sign-in","second_factor_dropped":false}', '580f5d35f8cdbac40abd896ac71efd57aa571fa2b828f7cc5661a3ed0a3ba69b');
INSERT INTO public.audit VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 10, 1795669290425502, '568f1045-f23b-41cc-9861-541fc81a86a5', 'owner@example.com', '127.0.0.1', 'dashboard', 'user.password', 'owner@example.com', '{"by":"link","purpose":"sign-in"}', '28ef06d45fb4cea5e0104a716759ecdc43fb7e12fbb34f0ddc435f9ba1e898dd');
INSERT INTO public.audit VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 11, 1795669291427755, '11fa789d-c3a9-4f6c-acd0-27a5b100f4dd', 'reader@example.com', '127.0.0.1', 'dashboard', 'user.password', 'reader@example.com', '{"by":"link","purpose":"invite"}', '6053641c02b4a8ffaf709013350782f90e60f34fc5e7cc68fdbe7b2e44b0baac');
INSERT INTO public.audit VALUES ('b020497a-1bde-4de0-b6a6-f4a60d57f518', 2, 1795669291923661, NULL, 'command line (root)', '', 'cli', 'user.link', 'operator@example.com', '{"purpose":"sign-in","second_factor_dropped":false}', '4b0a2c28ece4b01f71063ffb1fd1dd7399165bb9034292a2b3322d7231b227e8');


--
-- Data for Name: audit_head; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.audit_head VALUES ('f8e368c2-4c27-4dd5-abad-4fb9dda580bb', 1, '6cf028599286518790e14b3941681ee20a016ae0e777409b4cb1409c86564cf5');
INSERT INTO public.audit_head VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 11, '6053641c02b4a8ffaf709013350782f90e60f34fc5e7cc68fdbe7b2e44b0baac');
INSERT INTO public.audit_head VALUES ('b020497a-1bde-4de0-b6a6-f4a60d57f518', 2, '4b0a2c28ece4b01f71063ffb1fd1dd7399165bb9034292a2b3322d7231b227e8');


--
-- Data for Name: body; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.body VALUES (4, '9b5957d9c1e614a3', 0, 1795669292969328, '\x46726f6d3a20636170706564406578616d706c652e636f6d0d0a546f3a20736f6d656f6e6533406578616d706c652e6e65740d0a5375626a6563743a204b6570740d0a446174653a205468752c203236204e6f7620323032362030353a30313a3332202b303030300d0a4d6573736167652d49443a203c3239616665653934346265306431313036323363636537333735363035636330406578616d706c652e636f6d3e0d0a4d494d452d56657273696f6e3a20312e300d0a436f6e74656e742d547970653a20746578742f706c61696e3b20636861727365743d227574662d38220d0a436f6e74656e742d5472616e736665722d456e636f64696e673a20376269740d0a0d0a48656c6c6f0d0a');
INSERT INTO public.body VALUES (5, '9b59688090fb43d9', 0, 1795669293215963, '\x46726f6d3a206c617465406578616d706c652e636f6d0d0a546f3a20736f6d656f6e6534406578616d706c652e6e65740d0a5375626a6563743a204b6570740d0a446174653a205468752c203236204e6f7620323032362030353a30313a3333202b303030300d0a4d6573736167652d49443a203c6263303162303434646234343634316532353131616363646462373063356566406578616d706c652e636f6d3e0d0a4d494d452d56657273696f6e3a20312e300d0a436f6e74656e742d547970653a20746578742f706c61696e3b20636861727365743d227574662d38220d0a436f6e74656e742d5472616e736665722d456e636f64696e673a20376269740d0a0d0a48656c6c6f0d0a');
INSERT INTO public.body VALUES (6, '9b5973c67410c3dc', 0, 1795669293494789, '\x46726f6d3a206c617465406578616d706c652e636f6d0d0a546f3a20736f6d656f6e6535406578616d706c652e6e65740d0a5375626a6563743a204b6570740d0a446174653a205468752c203236204e6f7620323032362030353a30313a3333202b303030300d0a4d6573736167652d49443a203c6338323865343838333837326138316563373066386430333665653963306561406578616d706c652e636f6d3e0d0a4d494d452d56657273696f6e3a20312e300d0a436f6e74656e742d547970653a20746578742f706c61696e3b20636861727365743d227574662d38220d0a436f6e74656e742d5472616e736665722d456e636f64696e673a20376269740d0a0d0a48656c6c6f0d0a');
INSERT INTO public.body VALUES (9, '9b59d500963aa5ce', 0, 1795669295035898, '\x46726f6d3a206e6f7265706c79406578616d706c652e636f6d0d0a546f3a20736c6f772d31406578616d706c652e6e65740d0a5375626a6563743a204b6570740d0a446174653a205468752c203236204e6f7620323032362030353a30313a3335202b303030300d0a4d6573736167652d49443a203c6264393264333733306538343166313130626438636231393133663964383032406578616d706c652e636f6d3e0d0a4d494d452d56657273696f6e3a20312e300d0a436f6e74656e742d547970653a20746578742f706c61696e3b20636861727365743d227574662d38220d0a436f6e74656e742d5472616e736665722d456e636f64696e673a20376269740d0a0d0a48656c6c6f0d0a');


--
-- Data for Name: cap; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.cap VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb|capped@example.com', 1, 1795755692761740);


--
-- Data for Name: cap_use; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.cap_use VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb|capped@example.com', '9b59453d5be4471e', 1795669292761739);


--
-- Data for Name: counter; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.counter VALUES ('generation', 8);
INSERT INTO public.counter VALUES ('people', 1);
INSERT INTO public.counter VALUES ('tally', 1795669200000000);


--
-- Data for Name: dkim_key; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.dkim_key VALUES ('example.com', 'rsa20261126', 'rsa-sha256', '\x01ee6c98908224264e53b07bd2dbae9a26d0c41198e7c032d3594cb06391d492bb199b74afd81176d813bf5ba6422d31746c3e76ffe51baabebc696bbdec7222393d05e80f599b2c7875c3230676f9cf3ffa19ac916ce443aa12561e67a8e4be1a410829d2193a05e75f4d9f1fa64c73dc177c647870c7d2428ba30af868bcf0570af88ec5f2f13f14f2779df77767388e2278cfbc90cc8dbb12e20722b9b62d4de13f99602675cad67d6ede31623d86a6158e394c90349a7b25b6289d703d34c57120ac6e0e1d1f85190a3435dbcdec2cf6ccf376f25b8a735ca5f043fa084a459ec40e26748048da3643466f22b686945e1f0f0fba828dbc33a8cae7a92043edbfd5d42fc5816a7eb6a91542bf2a77e8899840ddae4ac4243766466913b413879559387c958a0f38dc4a2163edfbb62714656e52cad23664d7455082353351e38f3f4495a865a8711ce1660ff2b3f30a43be3e575cb0aea4b71dea886f44581f81111422d1ff6ecfe79cb37655b186e0ca8155235579a058d1a35ec0d37be9f5f41e55f4e85b61647ca55b396cfacc4d56876a93ab66fc50f13837eb415fb64b795dfa01e3a3828308fd86078256552bfbf346d8d528833b43059896fc5db10e38b941ad97b518d81c9128bf5bc97138f4fcbe0a99f1797cfc152a632a5bf20b600e8733ba6709cd31226c8f57afd473f376b8bd7a9bf2624e157e7fc92312997c73fa803de5d35210043d067224a4f77ea3e16fac65554bf5972fa64797725a06d717f616a26b7b663bfaa9a8bcd60e1797026ef9ed56ad7f81aac69052a9972dd5b95547b0b3b5753b73090d76d37fdfe79cae0cd1b74c0a52dc89ad49987279532c432a775daee3d9fbc27d2d05576e9b22a3802737d91cc030100669f39f720534bc73063c35380a502ec1644884a052ce86b0f81d18023d71f75d2907e012718fb89671caac4633cc9c98df27ca864cf53d228514f1fc3dc14d2ef9afe66c189d030bcd9c34ee0480cc6aec319427b825d7ff27947c1d5f4a7822f8c891f0923e3d04a14183240796fb6653dc08c6b1074986f4d1fcd29c61bc0719732d61524525255e2609281c158298fd4d6be25d36ebf9c6db22cecc35e0d2408c8c5c6ecb487d0fb8628fde22c88c81d89a027a7d338ca631d2f2fc9f2947c4a9b1ca82da6121fc844b365e724b0cc4e66213811dc6366a4c8455263ee19551ae3ea9d702304c959fe8d001c9176cc259de7356ba690a66ed85edb80dbdc6f4846193c12fde511fbc975469e1015fef33161e0828e9b21f1e5a5e03286d6e07e352c678f11a53a0d91c573270e8054d9f6807dc8efb8f2a73f3c5bab83803f20b8dc6400a2e8b5ad39976fb2f041f5435fa4faea39eef8c4146854a0d320067c0164f7685366df137accdecc4a9860b2c50471a672b27e7ad9abea02d2bac61204a86bc5b798882db390fd30b494bcd23015f444b5f6b0cfec28caa321413b9a6e7a857286e436dc7955ed3bd867bb6aee69d003223957a924015a56c5171d47549e070cadee755771a72c96b3050e7dd396e7f0594be591a2eea245607fc0eacbbe76f55c48010e0ece60bcb763de52589a5bb90657937a97de5ffc65e010b09b1f3c699fcbec41becc29447303a7ffee7a8fb7ee00cbf45b19153342b5df24a0309078f6ac064d6ea2685f1660cf07e9b7cd3e5b656d93ae79cf818ee3819b78d544f600fc22c9a9b9f6df3c20152ede82ec033b0cbcd357022480c647f94e6b35a20b6df94a4', 'MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAtU0WO/wZTgF0OI4dR+yGn2CR935olgEQi2DvMCCMDTv4vAmx8ZQf4bEPsjnfLmgx2l8VhmlxzecQl9AzY4oualHXKCrjKgVpL3GG4+IA4+KXULgS/6QXCmcEuhUsKxRDx81+8fXnCxa58R3w+/fJikzmIui38Dm/Hx7b4eP+P7En58xKMYzyR0krMRXEc9p4ey+/ZHJkzfCl8GQsvna6nGmiRnHCWoEEgjQ2plEYG4jpdD50NbeaEV8fjNq4itMLJbnBKi5m71XZPzIDRo+9H6MENahJkyW3doB0afDvhoKCsFvxebwOTvRXgqLlvgbyjn6ACbbI5ZT1yGYK+9lUsQIDAQAB', 'pending', 1795669282787066, NULL, 1795669282787066);


--
-- Data for Name: event; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.event VALUES (1, '9b5938a33deac31b', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669292316503, 'accepted', '{"door":"http","peer":"127.0.0.1","session":"7b03279f02c06997","tls":["TLSv1.3","TLS_AES_256_GCM_SHA384"],"helo":"","size":271,"steps":[[1795669292289774,"note","TLS: TLSv1.3 TLS_AES_256_GCM_SHA384"],[1795669292289774,"peer","POST /api/v1/email/send HTTP/1.1, 97 octets, key …SFbpA"]]}');
INSERT INTO public.event VALUES (2, '9b5938a33deac31b', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669292420354, 'attempt', '{"host":"127.0.0.1[127.0.0.1]:45753","tls":null,"started_at":1795669292376075,"route":"sink","destination":"","outcomes":[{"recipient":0,"result":"delivered","reply":"250 2.0.0 captured","retry_at":null}],"steps":[[1795669292376896,"note","connected to 127.0.0.1[127.0.0.1]:45753"],[1795669292383765,"peer","220 capture.test ESMTP"],[1795669292383765,"us","EHLO smtp.test"],[1795669292387327,"peer","250 capture.test PIPELINING SIZE 52428800 8BITMIME SMTPUTF8 ENHANCEDSTATUSCODES"],[1795669292387598,"us","MAIL FROM:<noreply@example.com> SIZE=271"],[1795669292387598,"us","RCPT TO:<someone0@example.net>"],[1795669292387598,"us","DATA"],[1795669292391414,"peer","250 2.1.0 ok"],[1795669292391414,"peer","250 2.1.5 ok"],[1795669292391414,"peer","354 go on"],[1795669292415854,"us","(content, 271 octets)"],[1795669292415873,"us","."],[1795669292420208,"peer","250 2.0.0 captured"]]}');
INSERT INTO public.event VALUES (3, '9b5938a33deac31b', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669292447843, 'replied', '{"final":true,"id":"9b5938a33deac31b","header_id":"<3d7ad88c621f947a5fcf1b351a181ca4@example.com>","status":"sent","from":"noreply@example.com","recipients":1,"charged":1,"rejected":[],"hint":"","capped":false}');
INSERT INTO public.event VALUES (4, '9b5942613b84f7fc', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669292539892, 'accepted', '{"door":"http","peer":"127.0.0.1","session":"4f1930a4e084b5f6","tls":["TLSv1.3","TLS_AES_256_GCM_SHA384"],"helo":"","size":271,"steps":[[1795669292539830,"note","TLS: TLSv1.3 TLS_AES_256_GCM_SHA384"],[1795669292539830,"peer","POST /api/v1/email/send HTTP/1.1, 97 octets, key …SFbpA"]]}');
INSERT INTO public.event VALUES (5, '9b5942613b84f7fc', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669292565285, 'attempt', '{"host":"127.0.0.1[127.0.0.1]:45753","tls":null,"started_at":1795669292553811,"route":"sink","destination":"","outcomes":[{"recipient":0,"result":"delivered","reply":"250 2.0.0 captured","retry_at":null}],"steps":[[1795669292553883,"note","kept connection to 127.0.0.1[127.0.0.1]:45753, message 2"],[1795669292553904,"us","MAIL FROM:<noreply@example.com> SIZE=271"],[1795669292553904,"us","RCPT TO:<someone1@example.net>"],[1795669292553904,"us","DATA"],[1795669292559429,"peer","250 2.1.0 ok"],[1795669292559429,"peer","250 2.1.5 ok"],[1795669292559429,"peer","354 go on"],[1795669292563555,"us","(content, 271 octets)"],[1795669292563573,"us","."],[1795669292565169,"peer","250 2.0.0 captured"]]}');
INSERT INTO public.event VALUES (6, '9b5942613b84f7fc', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669292575662, 'replied', '{"final":true,"id":"9b5942613b84f7fc","header_id":"<cd4d5bab0e2ac5ad2e588fdc1927e1c6@example.com>","status":"sent","from":"noreply@example.com","recipients":1,"charged":1,"rejected":[],"hint":"","capped":false}');
INSERT INTO public.event VALUES (7, '9b59453d5be4471e', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669292691934, 'accepted', '{"door":"http","peer":"127.0.0.1","session":"ed4e5244dd9b2cf3","tls":["TLSv1.3","TLS_AES_256_GCM_SHA384"],"helo":"","size":270,"steps":[[1795669292691869,"note","TLS: TLSv1.3 TLS_AES_256_GCM_SHA384"],[1795669292691869,"peer","POST /api/v1/email/send HTTP/1.1, 96 octets, key …SFbpA"]]}');
INSERT INTO public.event VALUES (8, '9b59453d5be4471e', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669292761739, 'attempt', '{"host":"127.0.0.1[127.0.0.1]:45753","tls":null,"started_at":1795669292743712,"route":"sink","destination":"","outcomes":[{"recipient":0,"result":"delivered","reply":"250 2.0.0 captured","retry_at":null}],"steps":[[1795669292743791,"note","kept connection to 127.0.0.1[127.0.0.1]:45753, message 3"],[1795669292743812,"us","MAIL FROM:<capped@example.com> SIZE=270"],[1795669292743812,"us","RCPT TO:<someone2@example.net>"],[1795669292743812,"us","DATA"],[1795669292746225,"peer","250 2.1.0 ok"],[1795669292746225,"peer","250 2.1.5 ok"],[1795669292746225,"peer","354 go on"],[1795669292759837,"us","(content, 270 octets)"],[1795669292759859,"us","."],[1795669292761612,"peer","250 2.0.0 captured"]]}');
INSERT INTO public.event VALUES (9, '9b59453d5be4471e', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669292776338, 'replied', '{"final":true,"id":"9b59453d5be4471e","header_id":"<9a43e670db0484ec507b7ad518bfbb1d@example.com>","status":"sent","from":"capped@example.com","recipients":1,"charged":1,"rejected":[],"hint":"","capped":false}');
INSERT INTO public.event VALUES (10, '9b5957d9c1e614a3', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669292969328, 'accepted', '{"door":"http","peer":"127.0.0.1","session":"e90b502ce23f0537","tls":["TLSv1.3","TLS_AES_256_GCM_SHA384"],"helo":"","size":270,"steps":[[1795669292969260,"note","TLS: TLSv1.3 TLS_AES_256_GCM_SHA384"],[1795669292969260,"peer","POST /api/v1/email/send HTTP/1.1, 96 octets, key …SFbpA"]]}');
INSERT INTO public.event VALUES (11, '9b5957d9c1e614a3', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669293020666, 'replied', '{"final":true,"id":"9b5957d9c1e614a3","header_id":"<29afee944be0d110623cce7375605cc0@example.com>","status":"queued","from":"capped@example.com","recipients":1,"charged":1,"rejected":[],"hint":"The daily cap of 1 messages of capped@example.com is used up: leaves at about 2026-11-27T05:01:32Z.","capped":true}');
INSERT INTO public.event VALUES (12, '9b59688090fb43d9', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669293215963, 'accepted', '{"door":"http","peer":"127.0.0.1","session":"d206c3acf68c721c","tls":["TLSv1.3","TLS_AES_256_GCM_SHA384"],"helo":"","size":268,"steps":[[1795669293215899,"note","TLS: TLSv1.3 TLS_AES_256_GCM_SHA384"],[1795669293215899,"peer","POST /api/v1/email/send HTTP/1.1, 94 octets, key …SFbpA"]]}');
INSERT INTO public.event VALUES (13, '9b59688090fb43d9', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669293245960, 'attempt', '{"host":"","tls":null,"started_at":1795669293245431,"route":"away","destination":"","outcomes":[{"recipient":0,"result":"deferred","reply":"451 4.4.1 connect: 127.0.0.1:1: error connecting to (''127.0.0.1'', 1): connection refused","retry_at":1795672828172926}],"steps":[[1795669293245928,"note","connect: 127.0.0.1:1: error connecting to (''127.0.0.1'', 1): connection refused"]]}');
INSERT INTO public.event VALUES (14, '9b59688090fb43d9', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669293281275, 'replied', '{"final":true,"id":"9b59688090fb43d9","header_id":"<bc01b044db44641e2511accddb70c5ef@example.com>","status":"queued","from":"late@example.com","recipients":1,"charged":1,"rejected":[],"hint":"The next hop answered: 451 4.4.1 connect: 127.0.0.1:1: error connecting to (''127.0.0.1'', 1): connection refused. The next attempt is at 2026-11-26T06:00:28Z.","capped":false}');
INSERT INTO public.event VALUES (15, '9b5973c67410c3dc', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669293494789, 'accepted', '{"door":"http","peer":"127.0.0.1","session":"ed252615e830e10b","tls":["TLSv1.3","TLS_AES_256_GCM_SHA384"],"helo":"","size":268,"steps":[[1795669293494723,"note","TLS: TLSv1.3 TLS_AES_256_GCM_SHA384"],[1795669293494723,"peer","POST /api/v1/email/send HTTP/1.1, 94 octets, key …SFbpA"]]}');
INSERT INTO public.event VALUES (16, '9b5973c67410c3dc', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669293529520, 'attempt', '{"host":"","tls":null,"started_at":1795669293529019,"route":"away","destination":"","outcomes":[{"recipient":0,"result":"deferred","reply":"451 4.4.1 connect: 127.0.0.1:1: error connecting to (''127.0.0.1'', 1): connection refused","retry_at":1795672901777311}],"steps":[[1795669293529491,"note","connect: 127.0.0.1:1: error connecting to (''127.0.0.1'', 1): connection refused"]]}');
INSERT INTO public.event VALUES (17, '9b5973c67410c3dc', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669293562503, 'replied', '{"final":true,"id":"9b5973c67410c3dc","header_id":"<c828e4883872a81ec70f8d036ee9c0ea@example.com>","status":"queued","from":"late@example.com","recipients":1,"charged":1,"rejected":[],"hint":"The next hop answered: 451 4.4.1 connect: 127.0.0.1:1: error connecting to (''127.0.0.1'', 1): connection refused. The next attempt is at 2026-11-26T06:01:41Z.","capped":false}');
INSERT INTO public.event VALUES (18, '9b5985daddf4dcf3', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669293724120, 'accepted', '{"door":"http","peer":"127.0.0.1","session":"cfdd949b69b5ba23","tls":["TLSv1.3","TLS_AES_256_GCM_SHA384"],"helo":"","size":271,"steps":[[1795669293724050,"note","TLS: TLSv1.3 TLS_AES_256_GCM_SHA384"],[1795669293724050,"peer","POST /api/v1/email/send HTTP/1.1, 97 octets, key …SFbpA"]]}');
INSERT INTO public.event VALUES (19, '9b5985daddf4dcf3', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669293775287, 'attempt', '{"host":"127.0.0.1[127.0.0.1]:45753","tls":null,"started_at":1795669293768456,"route":"sink","destination":"","outcomes":[{"recipient":0,"result":"failed","reply":"550 5.1.1 no such mailbox here","retry_at":null}],"steps":[[1795669293768554,"note","kept connection to 127.0.0.1[127.0.0.1]:45753, message 4"],[1795669293768574,"us","MAIL FROM:<noreply@example.com> SIZE=271"],[1795669293768574,"us","RCPT TO:<reject-1@example.net>"],[1795669293768574,"us","DATA"],[1795669293775129,"peer","250 2.1.0 ok"],[1795669293775129,"peer","550 5.1.1 no such mailbox here"],[1795669293775129,"peer","503 5.5.1 no valid recipients"]]}');
INSERT INTO public.event VALUES (20, '9b5985daddf4dcf3', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669293827857, 'replied', '{"refused":"RELAY_FAILED","reply":"550 5.1.1 no such mailbox here"}');
INSERT INTO public.event VALUES (21, '9b59948d5d9dd0bc', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669294031541, 'accepted', '{"door":"smtp","peer":"127.0.0.1","session":"6e7de27b39ce7267","tls":["TLSv1.3","TLS_AES_256_GCM_SHA384"],"helo":"client.test","size":299,"steps":[[1795669293914057,"note","connected by TCP 127.0.0.1"],[1795669293914057,"us","220 smtp.test ESMTP hepmaild"],[1795669293927038,"peer","ehlo client.test"],[1795669293927038,"us","250 smtp.test PIPELINING SIZE 26214400 8BITMIME SMTPUTF8 ENHANCEDSTATUSCODES CHUNKING LIMITS RCPTMAX=100 STARTTLS"],[1795669293933249,"peer","STARTTLS"],[1795669293933249,"us","220 2.0.0 Ready to start TLS"],[1795669293939104,"note","TLS established: TLSv1.3 TLS_AES_256_GCM_SHA384"],[1795669293939221,"peer","ehlo client.test"],[1795669293939221,"us","250 smtp.test PIPELINING SIZE 26214400 8BITMIME SMTPUTF8 ENHANCEDSTATUSCODES CHUNKING LIMITS RCPTMAX=100 AUTH PLAIN LOGIN"],[1795669293942013,"peer","AUTH PLAIN ***"],[1795669293955615,"us","235 2.7.0 Authentication successful"],[1795669293958808,"peer","mail FROM:<noreply@example.com> size=27"],[1795669293974857,"us","250 2.1.0 OK"],[1795669293983140,"peer","rcpt TO:<one@example.net>"],[1795669293983140,"us","250 2.1.5 OK"],[1795669293987087,"peer","rcpt TO:<two@example.org>"],[1795669293987087,"us","250 2.1.5 OK"],[1795669293988539,"peer","data"],[1795669294017743,"us","354 End data with <CR><LF>.<CR><LF>"],[1795669294031221,"peer","message content, 27 octets"]]}');
INSERT INTO public.event VALUES (22, '9b59948d5d9dd0bc', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669294123205, 'attempt', '{"host":"127.0.0.1[127.0.0.1]:45753","tls":null,"started_at":1795669294082703,"route":"sink","destination":"","outcomes":[{"recipient":0,"result":"delivered","reply":"250 2.0.0 captured","retry_at":null},{"recipient":1,"result":"delivered","reply":"250 2.0.0 captured","retry_at":null}],"steps":[[1795669294082766,"note","kept connection to 127.0.0.1[127.0.0.1]:45753, message 5"],[1795669294082783,"us","RSET"],[1795669294082783,"us","MAIL FROM:<noreply@example.com> SIZE=299"],[1795669294082783,"us","RCPT TO:<one@example.net>"],[1795669294082783,"us","RCPT TO:<two@example.org>"],[1795669294082783,"us","DATA"],[1795669294092133,"peer","250 2.0.0 ok"],[1795669294092133,"peer","250 2.1.0 ok"],[1795669294092133,"peer","250 2.1.5 ok"],[1795669294092133,"peer","250 2.1.5 ok"],[1795669294092133,"peer","354 go on"],[1795669294116487,"us","(content, 299 octets)"],[1795669294116507,"us","."],[1795669294123106,"peer","250 2.0.0 captured"]]}');
INSERT INTO public.event VALUES (23, '9b59948d5d9dd0bc', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669294178503, 'replied', '{"final":true,"id":"9b59948d5d9dd0bc","header_id":"<02bc7c1c9a1e0d53282964952ceaa83e@example.com>","status":"sent","from":"noreply@example.com","recipients":2,"charged":2,"rejected":[],"hint":"","capped":false}');
INSERT INTO public.event VALUES (24, '9b59688090fb43d9', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669294322748, 'held', '{"recipients": 1}');
INSERT INTO public.event VALUES (25, '9b59d500963aa5ce', '458a6969-c080-47f7-9d5d-efd83d60adeb', 1795669295035898, 'accepted', '{"door":"http","peer":"127.0.0.1","session":"1ea51868d4292b9e","tls":["TLSv1.3","TLS_AES_256_GCM_SHA384"],"helo":"","size":269,"steps":[[1795669295035852,"note","TLS: TLSv1.3 TLS_AES_256_GCM_SHA384"],[1795669295035852,"peer","POST /api/v1/email/send HTTP/1.1, 95 octets, key …SFbpA"]]}');


--
-- Data for Name: idempotency; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.idempotency VALUES ('w:word 0', '8189235a-8df9-40e4-8ddb-39d6b07ceb7c', '\x818d7c29d99926394d1672c19f2597c1b2298412a2ba0a0f0181c30e0c3711ed', '9b5938a33deac31b', 1795669292316503);
INSERT INTO public.idempotency VALUES ('w:word 1', '8189235a-8df9-40e4-8ddb-39d6b07ceb7c', '\xa7025b04822deeeb2e3cf287fb3196898db7769941388c160c598310452972f1', '9b5942613b84f7fc', 1795669292539892);
INSERT INTO public.idempotency VALUES ('w:word 2', '8189235a-8df9-40e4-8ddb-39d6b07ceb7c', '\x1e2b2628b71c599d70ef7247d3b019c80b80516c2be3a72647890aeefd29de83', '9b59453d5be4471e', 1795669292691934);
INSERT INTO public.idempotency VALUES ('w:word 3', '8189235a-8df9-40e4-8ddb-39d6b07ceb7c', '\x3c065406bb51f20addb9e80c83d104c992d6ce01f2a609d6f0b9cc15b25191f4', '9b5957d9c1e614a3', 1795669292969328);
INSERT INTO public.idempotency VALUES ('w:word 4', '8189235a-8df9-40e4-8ddb-39d6b07ceb7c', '\x9e00c394ecaa8b4a256a093323a507f63915f976b487ff2a06eb45a005125ec4', '9b59688090fb43d9', 1795669293215963);
INSERT INTO public.idempotency VALUES ('w:word 5', '8189235a-8df9-40e4-8ddb-39d6b07ceb7c', '\x0bfb2c2f215f58f55417d1d3139a9b0d02f3d6e2936206eeb0d83e777756c49e', '9b5973c67410c3dc', 1795669293494789);


--
-- Data for Name: ledger; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.ledger VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 1, 100, 100, 'grant', NULL, 'command line (root)', NULL, 1795669280180906, '88ae9d4498582ea3f48b479e02c653ba46e325b35fa33c7297d7bf9dffd29571');
INSERT INTO public.ledger VALUES ('f8e368c2-4c27-4dd5-abad-4fb9dda580bb', 1, 10, 10, 'grant', NULL, 'command line (root)', NULL, 1795669280655818, 'c9d411cfc6e51dd85c953cd3c683bf0f6a9562613ea9d5911956776b8d8355ff');
INSERT INTO public.ledger VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 2, -1, 99, 'debit', '9b5938a33deac31b', NULL, NULL, 1795669292316503, 'fc476de41a11aeeb9014572c015b6971b34a8aee8a1b3fd39879b61ae0d255c2');
INSERT INTO public.ledger VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 3, -1, 98, 'debit', '9b5942613b84f7fc', NULL, NULL, 1795669292539892, '131fa1a36dd7af68de12122f21fe72bf90dbfdd82e1d1c5f5c4bef51be5dd4d3');
INSERT INTO public.ledger VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 4, -1, 97, 'debit', '9b59453d5be4471e', NULL, NULL, 1795669292691934, 'a2ded0bf0a3b693951b54abd2ddbf376747671dab109bb8c2f1db83ae95405a8');
INSERT INTO public.ledger VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 5, -1, 96, 'debit', '9b5957d9c1e614a3', NULL, NULL, 1795669292969328, '6c35e97f254ae31f3ab30bc2693b6359754c13bceb48a005560f72cbef0c46a9');
INSERT INTO public.ledger VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 6, -1, 95, 'debit', '9b59688090fb43d9', NULL, NULL, 1795669293215963, 'dfe4fa7249734a8f607b310c4b39e6c88c03a511c40e0f54533a95d07d110856');
INSERT INTO public.ledger VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 7, -1, 94, 'debit', '9b5973c67410c3dc', NULL, NULL, 1795669293494789, '6395f2f79a6373cdf171974dda2bbc942965f853460e8f7a508cb435cab1d66c');
INSERT INTO public.ledger VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 8, -1, 93, 'debit', '9b5985daddf4dcf3', NULL, NULL, 1795669293724120, '882c7d6f2015a0b2d85f601ad9d09c3881bcb95f89000d2dc86923f21fd80012');
INSERT INTO public.ledger VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 9, 1, 94, 'refund', '9b5985daddf4dcf3', NULL, NULL, 1795669293775287, '65c90c56f9d62c00bf11e08d0a31ebbcf06069f1ef0b5b63d786a5337837a304');
INSERT INTO public.ledger VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 10, -2, 92, 'debit', '9b59948d5d9dd0bc', NULL, NULL, 1795669294031541, 'b4803d36cbbdfc6985536bf730db83c8153603702b55ec01d3becb3bdcd60d24');
INSERT INTO public.ledger VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 11, -1, 91, 'debit', '9b59d500963aa5ce', NULL, NULL, 1795669295035898, '63528de30bbded224e5fadd64fe2318a9ca8e75756b0349b3717579722f30ba8');


--
-- Data for Name: login_session; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.login_session VALUES ('f6ff3fad-4fcf-4328-b471-8407424676cf', '568f1045-f23b-41cc-9861-541fc81a86a5', 'browser', '127.0.0.1', 'python-httpx/0.28.1', 1795669290425502, 1795669290425502, 1798261290425502, NULL, NULL);
INSERT INTO public.login_session VALUES ('91252b1a-2f27-448b-847b-570160e88829', '11fa789d-c3a9-4f6c-acd0-27a5b100f4dd', 'browser', '127.0.0.1', 'python-httpx/0.28.1', 1795669291427755, 1795669291427755, 1798261291427755, NULL, NULL);


--
-- Data for Name: login_try; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.login_try VALUES ('00000000-0000-0000-0000-000000000000', '192.0.2.1', '\x00', true, false, 1800000000000000);


--
-- Data for Name: message; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.message VALUES ('9b5938a33deac31b', '458a6969-c080-47f7-9d5d-efd83d60adeb', '8189235a-8df9-40e4-8ddb-39d6b07ceb7c', 'app', 'SFbpA', 'http', 'noreply@example.com', 'sink', 'noreply@example.com', 'Kept', '<3d7ad88c621f947a5fcf1b351a181ca4@example.com>', 271, false, 1, 'sent', 0, 0, 1795669292316503, 1796014892316503, 1795669292420354, NULL, '{"final":true,"id":"9b5938a33deac31b","header_id":"<3d7ad88c621f947a5fcf1b351a181ca4@example.com>","status":"sent","from":"noreply@example.com","recipients":1,"charged":1,"rejected":[],"hint":"","capped":false}');
INSERT INTO public.message VALUES ('9b5942613b84f7fc', '458a6969-c080-47f7-9d5d-efd83d60adeb', '8189235a-8df9-40e4-8ddb-39d6b07ceb7c', 'app', 'SFbpA', 'http', 'noreply@example.com', 'sink', 'noreply@example.com', 'Kept', '<cd4d5bab0e2ac5ad2e588fdc1927e1c6@example.com>', 271, false, 1, 'sent', 0, 0, 1795669292539892, 1796014892539892, 1795669292565285, NULL, '{"final":true,"id":"9b5942613b84f7fc","header_id":"<cd4d5bab0e2ac5ad2e588fdc1927e1c6@example.com>","status":"sent","from":"noreply@example.com","recipients":1,"charged":1,"rejected":[],"hint":"","capped":false}');
INSERT INTO public.message VALUES ('9b59453d5be4471e', '458a6969-c080-47f7-9d5d-efd83d60adeb', '8189235a-8df9-40e4-8ddb-39d6b07ceb7c', 'app', 'SFbpA', 'http', 'capped@example.com', 'sink', 'capped@example.com', 'Kept', '<9a43e670db0484ec507b7ad518bfbb1d@example.com>', 270, false, 1, 'sent', 0, 0, 1795669292691934, 1796014892691934, 1795669292761739, NULL, '{"final":true,"id":"9b59453d5be4471e","header_id":"<9a43e670db0484ec507b7ad518bfbb1d@example.com>","status":"sent","from":"capped@example.com","recipients":1,"charged":1,"rejected":[],"hint":"","capped":false}');
INSERT INTO public.message VALUES ('9b5957d9c1e614a3', '458a6969-c080-47f7-9d5d-efd83d60adeb', '8189235a-8df9-40e4-8ddb-39d6b07ceb7c', 'app', 'SFbpA', 'http', 'capped@example.com', 'sink', 'capped@example.com', 'Kept', '<29afee944be0d110623cce7375605cc0@example.com>', 270, false, 1, 'capped', 1, 0, 1795669292969328, 1796014892969328, NULL, NULL, '{"final":true,"id":"9b5957d9c1e614a3","header_id":"<29afee944be0d110623cce7375605cc0@example.com>","status":"queued","from":"capped@example.com","recipients":1,"charged":1,"rejected":[],"hint":"The daily cap of 1 messages of capped@example.com is used up: leaves at about 2026-11-27T05:01:32Z.","capped":true}');
INSERT INTO public.message VALUES ('9b5985daddf4dcf3', '458a6969-c080-47f7-9d5d-efd83d60adeb', '8189235a-8df9-40e4-8ddb-39d6b07ceb7c', 'app', 'SFbpA', 'http', 'noreply@example.com', 'sink', 'noreply@example.com', 'Kept', '<9dbf951923dba979fc90a5f29b3b9dc1@example.com>', 271, false, 1, 'failed', 0, 1, 1795669293724120, 1796014893724120, 1795669293775287, NULL, '{"refused":"RELAY_FAILED","reply":"550 5.1.1 no such mailbox here"}');
INSERT INTO public.message VALUES ('9b5973c67410c3dc', '458a6969-c080-47f7-9d5d-efd83d60adeb', '8189235a-8df9-40e4-8ddb-39d6b07ceb7c', 'app', 'SFbpA', 'http', 'late@example.com', 'away', 'late@example.com', 'Kept', '<c828e4883872a81ec70f8d036ee9c0ea@example.com>', 268, false, 1, 'deferred', 1, 0, 1795669293494789, 1796014893494789, NULL, NULL, '{"final":true,"id":"9b5973c67410c3dc","header_id":"<c828e4883872a81ec70f8d036ee9c0ea@example.com>","status":"queued","from":"late@example.com","recipients":1,"charged":1,"rejected":[],"hint":"The next hop answered: 451 4.4.1 connect: 127.0.0.1:1: error connecting to (''127.0.0.1'', 1): connection refused. The next attempt is at 2026-11-26T06:01:41Z.","capped":false}');
INSERT INTO public.message VALUES ('9b59948d5d9dd0bc', '458a6969-c080-47f7-9d5d-efd83d60adeb', '8189235a-8df9-40e4-8ddb-39d6b07ceb7c', 'app', 'SFbpA', 'smtp', 'noreply@example.com', 'sink', 'noreply@example.com', 'by SMTP', '<02bc7c1c9a1e0d53282964952ceaa83e@example.com>', 299, false, 2, 'sent', 0, 0, 1795669294031541, 1796014894031541, 1795669294123205, NULL, '{"final":true,"id":"9b59948d5d9dd0bc","header_id":"<02bc7c1c9a1e0d53282964952ceaa83e@example.com>","status":"sent","from":"noreply@example.com","recipients":2,"charged":2,"rejected":[],"hint":"","capped":false}');
INSERT INTO public.message VALUES ('9b59688090fb43d9', '458a6969-c080-47f7-9d5d-efd83d60adeb', '8189235a-8df9-40e4-8ddb-39d6b07ceb7c', 'app', 'SFbpA', 'http', 'late@example.com', 'away', 'late@example.com', 'Kept', '<bc01b044db44641e2511accddb70c5ef@example.com>', 268, false, 1, 'held', 1, 0, 1795669293215963, 1796014893215963, NULL, NULL, '{"final":true,"id":"9b59688090fb43d9","header_id":"<bc01b044db44641e2511accddb70c5ef@example.com>","status":"queued","from":"late@example.com","recipients":1,"charged":1,"rejected":[],"hint":"The next hop answered: 451 4.4.1 connect: 127.0.0.1:1: error connecting to (''127.0.0.1'', 1): connection refused. The next attempt is at 2026-11-26T06:00:28Z.","capped":false}');
INSERT INTO public.message VALUES ('9b59d500963aa5ce', '458a6969-c080-47f7-9d5d-efd83d60adeb', '8189235a-8df9-40e4-8ddb-39d6b07ceb7c', 'app', 'SFbpA', 'http', 'noreply@example.com', 'sink', 'noreply@example.com', 'Kept', '<bd92d3730e841f110bd8cb1913f9d802@example.com>', 269, false, 1, 'queued', 1, 0, 1795669295035898, 1796014895035898, NULL, NULL, '{"final":false,"id":"9b59d500963aa5ce","header_id":"<bd92d3730e841f110bd8cb1913f9d802@example.com>","status":"queued","from":"noreply@example.com","recipients":1,"charged":1,"rejected":[],"hint":"The message is queued; the first attempt is made as soon as possible.","capped":false}');


--
-- Data for Name: one_time_link; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.one_time_link VALUES ('\x164a90a38174de3f8f2fdffa2bdf493045ff47b98b14dc348a677f5f6f3d5d08', '568f1045-f23b-41cc-9861-541fc81a86a5', 'sign-in', 1795669289378203, 1795755689378203, 1795669290425502);
INSERT INTO public.one_time_link VALUES ('\x234d4f2cbe679a5c68557d1703e5c264e8fd785045fd50bf592bc21010450a65', '11fa789d-c3a9-4f6c-acd0-27a5b100f4dd', 'invite', 1795669288639478, 1795755688639478, 1795669291427755);
INSERT INTO public.one_time_link VALUES ('\x18b028ff1f0c211d3edab56be1884804132edd641909cc44ec21ee2f9574f36c', '375c00bf-a966-467b-832a-21dce6d5da89', 'sign-in', 1795669291923661, 1795755691923661, NULL);


--
-- Data for Name: pause; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.pause VALUES ('direct', 'paused.example', 1795669282806827, '');


--
-- Data for Name: process; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.process VALUES ('9124-6d45ad44cb2f8e8e', 1795669298812361);
INSERT INTO public.process VALUES ('dead', 1800000000000000);


--
-- Data for Name: queue; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.queue VALUES ('9b5957d9c1e614a3', '', '458a6969-c080-47f7-9d5d-efd83d60adeb', 'sink', 1796014892969328, NULL, 1, false, '458a6969-c080-47f7-9d5d-efd83d60adeb|capped@example.com', 1795669292969328, 1795669292969328, 1796014892969328);
INSERT INTO public.queue VALUES ('9b5973c67410c3dc', '', '458a6969-c080-47f7-9d5d-efd83d60adeb', 'away', 1795672901777311, NULL, 1, false, '', NULL, 1795669293494789, 1796014893494789);
INSERT INTO public.queue VALUES ('9b59688090fb43d9', '', '458a6969-c080-47f7-9d5d-efd83d60adeb', 'away', 1796014893215963, NULL, 2, false, '', NULL, 1795669293215963, 1796014893215963);
INSERT INTO public.queue VALUES ('9b59d500963aa5ce', '', '458a6969-c080-47f7-9d5d-efd83d60adeb', 'sink', 4613481687722423802, '9124-6d45ad44cb2f8e8e', 1, true, '', NULL, 1795669295035898, 1796014895035898);


--
-- Data for Name: rate_call; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.rate_call VALUES ('8189235a-8df9-40e4-8ddb-39d6b07ceb7c', 1795669292275851, 1, 1);
INSERT INTO public.rate_call VALUES ('8189235a-8df9-40e4-8ddb-39d6b07ceb7c', 1795669292535128, 1, 2);
INSERT INTO public.rate_call VALUES ('8189235a-8df9-40e4-8ddb-39d6b07ceb7c', 1795669292674347, 1, 3);
INSERT INTO public.rate_call VALUES ('8189235a-8df9-40e4-8ddb-39d6b07ceb7c', 1795669292959828, 1, 4);
INSERT INTO public.rate_call VALUES ('8189235a-8df9-40e4-8ddb-39d6b07ceb7c', 1795669293207083, 1, 5);
INSERT INTO public.rate_call VALUES ('8189235a-8df9-40e4-8ddb-39d6b07ceb7c', 1795669293471583, 1, 6);
INSERT INTO public.rate_call VALUES ('8189235a-8df9-40e4-8ddb-39d6b07ceb7c', 1795669293715774, 1, 7);
INSERT INTO public.rate_call VALUES ('8189235a-8df9-40e4-8ddb-39d6b07ceb7c', 1795669294003590, 1, 8);
INSERT INTO public.rate_call VALUES ('8189235a-8df9-40e4-8ddb-39d6b07ceb7c', 1795669295032250, 1, 9);


--
-- Data for Name: recipient; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.recipient VALUES ('9b5938a33deac31b', 0, 'someone0@example.net', 'to', '', 'sent', 1, 0, NULL, '250 2.0.0 captured', 1795669292420354);
INSERT INTO public.recipient VALUES ('9b5942613b84f7fc', 0, 'someone1@example.net', 'to', '', 'sent', 1, 0, NULL, '250 2.0.0 captured', 1795669292565285);
INSERT INTO public.recipient VALUES ('9b59453d5be4471e', 0, 'someone2@example.net', 'to', '', 'sent', 1, 0, NULL, '250 2.0.0 captured', 1795669292761739);
INSERT INTO public.recipient VALUES ('9b5957d9c1e614a3', 0, 'someone3@example.net', 'to', '', 'capped', 0, 0, 1795755692761740, 'the daily cap of 1 messages of capped@example.com is used up: leaves at about 2026-11-27T05:01:32Z', 1795669292969328);
INSERT INTO public.recipient VALUES ('9b5973c67410c3dc', 0, 'someone5@example.net', 'to', '', 'deferred', 1, 0, 1795672901777311, '451 4.4.1 connect: 127.0.0.1:1: error connecting to (''127.0.0.1'', 1): connection refused', 1795669293529520);
INSERT INTO public.recipient VALUES ('9b5985daddf4dcf3', 0, 'reject-1@example.net', 'to', '', 'failed', 1, 0, NULL, '550 5.1.1 no such mailbox here', 1795669293775287);
INSERT INTO public.recipient VALUES ('9b59948d5d9dd0bc', 0, 'one@example.net', 'bcc', '', 'sent', 1, 0, NULL, '250 2.0.0 captured', 1795669294123205);
INSERT INTO public.recipient VALUES ('9b59948d5d9dd0bc', 1, 'two@example.org', 'bcc', '', 'sent', 1, 0, NULL, '250 2.0.0 captured', 1795669294123205);
INSERT INTO public.recipient VALUES ('9b59688090fb43d9', 0, 'someone4@example.net', 'to', '', 'held', 1, 0, 1796014893215963, '451 4.4.1 connect: 127.0.0.1:1: error connecting to (''127.0.0.1'', 1): connection refused', 1795669294322748);
INSERT INTO public.recipient VALUES ('9b59d500963aa5ce', 0, 'slow-1@example.net', 'to', '', 'queued', 0, 0, 1795669295035898, NULL, 1795669295035898);


--
-- Data for Name: recovery_code; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.recovery_code VALUES ('11fa789d-c3a9-4f6c-acd0-27a5b100f4dd', '\x00', NULL);


--
-- Data for Name: refresh_token; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.refresh_token VALUES ('\x959a66dad3d74b55b7bb9320dbb0622df10b66c9e49cbce91282c9d6382f80f9', 'f6ff3fad-4fcf-4328-b471-8407424676cf', 1795669290425502, NULL, NULL);
INSERT INTO public.refresh_token VALUES ('\x14a47c28d60ffb422efffe6b2de09bff70b81d4512f59687ab5d782d1137c085', '91252b1a-2f27-448b-847b-570160e88829', 1795669291427755, NULL, NULL);


--
-- Data for Name: sender; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.sender VALUES (1, '458a6969-c080-47f7-9d5d-efd83d60adeb', 'capped@example.com', 'capped@example.com', 'sink', 1, false);
INSERT INTO public.sender VALUES (2, '458a6969-c080-47f7-9d5d-efd83d60adeb', 'late@example.com', 'late@example.com', 'away', 0, false);


--
-- Data for Name: sts_policy; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.sts_policy VALUES ('example.net', '20260101', 'version: STSv1', 1800000000000000, 1900000000000000);


--
-- Data for Name: suppression; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.suppression VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 'gone@example.net', 'gone@example.net', 0, 1795669282364823, 1796878882364823, 'an operator said so', '', 1796878882364823);
INSERT INTO public.suppression VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 'reject-1@example.net', 'reject-1@example.net', 1, 1795669293775287, NULL, '550 5.1.1 no such mailbox here', '9b5985daddf4dcf3', 1796878893775287);


--
-- Data for Name: tally; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.tally VALUES ('458a6969-c080-47f7-9d5d-efd83d60adeb', 60, 1800000000000000, 3, 2, 1, 1, 1800000060000000);


--
-- Data for Name: token_key; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.token_key VALUES ('AIlJiJyk8xd8R2t0VzU9vX', '\x8b1283bf47f7ba675647660b736b79e77b98d6ab66238583a2acc97ed7cca7ec', 1796274087716174);


--
-- Data for Name: user_account; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.user_account VALUES ('bbb78da8-17fa-49cb-850c-839d9da8d635', 'f8e368c2-4c27-4dd5-abad-4fb9dda580bb', 'other@elsewhere.example', 'other@elsewhere.example', '', '', NULL, 'owner', false, false, 'active', NULL, NULL, 0, 1795669280655818, 1795669280655818);
INSERT INTO public.user_account VALUES ('375c00bf-a966-467b-832a-21dce6d5da89', 'b020497a-1bde-4de0-b6a6-f4a60d57f518', 'operator@example.com', 'operator@example.com', '', '', NULL, 'owner', true, false, 'active', NULL, NULL, 0, 1795669280848082, 1795669280848082);
INSERT INTO public.user_account VALUES ('568f1045-f23b-41cc-9861-541fc81a86a5', '458a6969-c080-47f7-9d5d-efd83d60adeb', 'owner@example.com', 'owner@example.com', '', '', '$argon2id$v=19$m=65536,t=3,p=4$oTG3h10UnBxQny68Q7eZeg$nsfHUdfYs2If+1uzZM6ReTHQCXL8Ud3AZ2j81xoQJZk', 'owner', false, true, 'active', NULL, NULL, 0, 1795669280180906, 1795669290425502);
INSERT INTO public.user_account VALUES ('11fa789d-c3a9-4f6c-acd0-27a5b100f4dd', '458a6969-c080-47f7-9d5d-efd83d60adeb', 'reader@example.com', 'reader@example.com', '', '', '$argon2id$v=19$m=65536,t=3,p=4$m/zNoEVx2bisGCPej6xb+A$BDwwuNsd4AAUC0E9UeYG56WXnuDqJeFKH8hffXK7VhY', 'read_only', false, true, 'active', NULL, NULL, 0, 1795669288639478, 1795669291427755);


--
-- Name: body_id_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.body_id_seq', 9, true);


--
-- Name: event_seq_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.event_seq_seq', 25, true);


--
-- Name: sender_id_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.sender_id_seq', 2, true);


--
-- Name: alembic_version alembic_version_pkc; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);


--
-- Name: account pk_account; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.account
    ADD CONSTRAINT pk_account PRIMARY KEY (id);


--
-- Name: api_key pk_api_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.api_key
    ADD CONSTRAINT pk_api_key PRIMARY KEY (id);


--
-- Name: audit pk_audit; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.audit
    ADD CONSTRAINT pk_audit PRIMARY KEY (account_id, seq);


--
-- Name: audit_head pk_audit_head; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.audit_head
    ADD CONSTRAINT pk_audit_head PRIMARY KEY (account_id);


--
-- Name: body pk_body; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.body
    ADD CONSTRAINT pk_body PRIMARY KEY (id);


--
-- Name: cap pk_cap; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.cap
    ADD CONSTRAINT pk_cap PRIMARY KEY (cap_key);


--
-- Name: cap_use pk_cap_use; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.cap_use
    ADD CONSTRAINT pk_cap_use PRIMARY KEY (cap_key, message_id);


--
-- Name: counter pk_counter; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.counter
    ADD CONSTRAINT pk_counter PRIMARY KEY (name);


--
-- Name: dkim_key pk_dkim_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.dkim_key
    ADD CONSTRAINT pk_dkim_key PRIMARY KEY (domain, selector);


--
-- Name: event pk_event; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.event
    ADD CONSTRAINT pk_event PRIMARY KEY (seq);


--
-- Name: idempotency pk_idempotency; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.idempotency
    ADD CONSTRAINT pk_idempotency PRIMARY KEY (word, key_id);


--
-- Name: ledger pk_ledger; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.ledger
    ADD CONSTRAINT pk_ledger PRIMARY KEY (account_id, seq);


--
-- Name: login_session pk_login_session; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.login_session
    ADD CONSTRAINT pk_login_session PRIMARY KEY (id);


--
-- Name: login_try pk_login_try; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.login_try
    ADD CONSTRAINT pk_login_try PRIMARY KEY (id);


--
-- Name: message pk_message; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.message
    ADD CONSTRAINT pk_message PRIMARY KEY (id);


--
-- Name: one_time_link pk_one_time_link; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.one_time_link
    ADD CONSTRAINT pk_one_time_link PRIMARY KEY (token_hash);


--
-- Name: pause pk_pause; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.pause
    ADD CONSTRAINT pk_pause PRIMARY KEY (route, destination);


--
-- Name: process pk_process; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.process
    ADD CONSTRAINT pk_process PRIMARY KEY (id);


--
-- Name: queue pk_queue; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.queue
    ADD CONSTRAINT pk_queue PRIMARY KEY (message_id, destination);


--
-- Name: rate_call pk_rate_call; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.rate_call
    ADD CONSTRAINT pk_rate_call PRIMARY KEY (key_id, at_us);


--
-- Name: recipient pk_recipient; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.recipient
    ADD CONSTRAINT pk_recipient PRIMARY KEY (message_id, n);


--
-- Name: recovery_code pk_recovery_code; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.recovery_code
    ADD CONSTRAINT pk_recovery_code PRIMARY KEY (user_id, code_hash);


--
-- Name: refresh_token pk_refresh_token; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.refresh_token
    ADD CONSTRAINT pk_refresh_token PRIMARY KEY (token_hash);


--
-- Name: sender pk_sender; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.sender
    ADD CONSTRAINT pk_sender PRIMARY KEY (id);


--
-- Name: sts_policy pk_sts_policy; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.sts_policy
    ADD CONSTRAINT pk_sts_policy PRIMARY KEY (domain);


--
-- Name: suppression pk_suppression; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.suppression
    ADD CONSTRAINT pk_suppression PRIMARY KEY (account_id, address_key);


--
-- Name: tally pk_tally; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.tally
    ADD CONSTRAINT pk_tally PRIMARY KEY (account_id, span_s, at_us);


--
-- Name: token_key pk_token_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.token_key
    ADD CONSTRAINT pk_token_key PRIMARY KEY (id);


--
-- Name: user_account pk_user_account; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.user_account
    ADD CONSTRAINT pk_user_account PRIMARY KEY (id);


--
-- Name: account uq_account_email_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.account
    ADD CONSTRAINT uq_account_email_key UNIQUE (email_key);


--
-- Name: api_key uq_api_key_secret_hash; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.api_key
    ADD CONSTRAINT uq_api_key_secret_hash UNIQUE (secret_hash);


--
-- Name: user_account uq_user_account_email_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.user_account
    ADD CONSTRAINT uq_user_account_email_key UNIQUE (email_key);


--
-- Name: ix_api_key_account_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_api_key_account_id ON public.api_key USING btree (account_id);


--
-- Name: ix_body_message_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_body_message_id ON public.body USING btree (message_id);


--
-- Name: ix_cap_next_us; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_cap_next_us ON public.cap USING btree (next_us) WHERE (next_us IS NOT NULL);


--
-- Name: ix_cap_use_at_us; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_cap_use_at_us ON public.cap_use USING btree (at_us);


--
-- Name: ix_cap_use_cap_key_at_us; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_cap_use_cap_key_at_us ON public.cap_use USING btree (cap_key, at_us);


--
-- Name: ix_event_message_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_event_message_id ON public.event USING btree (message_id);


--
-- Name: ix_idempotency_at_us; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_idempotency_at_us ON public.idempotency USING btree (at_us);


--
-- Name: ix_idempotency_message_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_idempotency_message_id ON public.idempotency USING btree (message_id);


--
-- Name: ix_ledger_account_id_reason_seq; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_ledger_account_id_reason_seq ON public.ledger USING btree (account_id, reason, seq) WHERE ((reason)::text <> 'debit'::text);


--
-- Name: ix_ledger_message_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_ledger_message_id ON public.ledger USING btree (message_id);


--
-- Name: ix_login_session_ends_at_us; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_login_session_ends_at_us ON public.login_session USING btree (ends_at_us);


--
-- Name: ix_login_session_user_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_login_session_user_id ON public.login_session USING btree (user_id, created_at_us);


--
-- Name: ix_login_try_at_us; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_login_try_at_us ON public.login_try USING btree (at_us);


--
-- Name: ix_login_try_client_at_us; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_login_try_client_at_us ON public.login_try USING btree (client, at_us);


--
-- Name: ix_login_try_email_hash_at_us; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_login_try_email_hash_at_us ON public.login_try USING btree (email_hash, at_us);


--
-- Name: ix_message_accepted_at_us; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_message_accepted_at_us ON public.message USING btree (accepted_at_us);


--
-- Name: ix_message_account_id_accepted_at_us; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_message_account_id_accepted_at_us ON public.message USING btree (account_id, accepted_at_us, id);


--
-- Name: ix_message_account_id_state_accepted_at_us; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_message_account_id_state_accepted_at_us ON public.message USING btree (account_id, state, accepted_at_us, id) WHERE ((state)::text <> ALL ((ARRAY['queued'::character varying, 'sent'::character varying])::text[]));


--
-- Name: ix_message_body_until_us; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_message_body_until_us ON public.message USING btree (body_until_us) WHERE (body_until_us IS NOT NULL);


--
-- Name: ix_one_time_link_expires_at_us; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_one_time_link_expires_at_us ON public.one_time_link USING btree (expires_at_us);


--
-- Name: ix_one_time_link_user_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_one_time_link_user_id ON public.one_time_link USING btree (user_id);


--
-- Name: ix_queue_cap_key_line_us; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_queue_cap_key_line_us ON public.queue USING btree (cap_key, line_us) WHERE (line_us IS NOT NULL);


--
-- Name: ix_queue_expires_at_us; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_queue_expires_at_us ON public.queue USING btree (expires_at_us) WHERE (owner IS NULL);


--
-- Name: ix_queue_owner; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_queue_owner ON public.queue USING btree (owner) WHERE (owner IS NOT NULL);


--
-- Name: ix_queue_route_destination_due_at_us; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_queue_route_destination_due_at_us ON public.queue USING btree (route, destination, due_at_us);


--
-- Name: ix_queue_route_due_at_us; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_queue_route_due_at_us ON public.queue USING btree (route, due_at_us) WHERE (owner IS NULL);


--
-- Name: ix_recipient_lower_address; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_recipient_lower_address ON public.recipient USING btree (lower(address));


--
-- Name: ix_refresh_token_session_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_refresh_token_session_id ON public.refresh_token USING btree (session_id);


--
-- Name: ix_suppression_account_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_suppression_account_id ON public.suppression USING btree (account_id, refused_at_us, address_key) WHERE (suppressed_until_us IS NOT NULL);


--
-- Name: ix_suppression_kept_until_us; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_suppression_kept_until_us ON public.suppression USING btree (kept_until_us);


--
-- Name: ix_tally_recount_at_us; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_tally_recount_at_us ON public.tally USING btree (recount_at_us) WHERE (recount_at_us IS NOT NULL);


--
-- Name: ix_tally_span_s_at_us; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_tally_span_s_at_us ON public.tally USING btree (span_s, at_us);


--
-- Name: ix_user_account_account_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_user_account_account_id ON public.user_account USING btree (account_id);


--
-- Name: uq_api_key_account_id_name; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX uq_api_key_account_id_name ON public.api_key USING btree (account_id, name) WHERE ((status)::text <> 'deleted'::text);


--
-- Name: uq_sender_account_id_address_key; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX uq_sender_account_id_address_key ON public.sender USING btree (account_id, address_key);


--
-- Name: api_key fk_api_key_account_id; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.api_key
    ADD CONSTRAINT fk_api_key_account_id FOREIGN KEY (account_id) REFERENCES public.account(id);


--
-- Name: user_account fk_user_account_account_id; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.user_account
    ADD CONSTRAINT fk_user_account_account_id FOREIGN KEY (account_id) REFERENCES public.account(id);


--
-- PostgreSQL database dump complete
--



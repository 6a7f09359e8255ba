<?php
// SPDX-License-Identifier: Apache-2.0
// Sends by the transport that Laravel's mail manager makes of these lines of .env (MAIL_SCHEME: else by the port).
require "Symfony/Component/Mailer/autoload.php";

use Symfony\Component\Mailer\Transport\Dsn;
use Symfony\Component\Mailer\Transport\Smtp\EsmtpTransportFactory;
use Symfony\Component\Mime\Address;
use Symfony\Component\Mime\Email;

$env = parse_ini_file(".env", false, INI_SCANNER_RAW);
$port = (int) $env["MAIL_PORT"];
$scheme = $env["MAIL_SCHEME"] ?? ($port === 465 ? "smtps" : "smtp");
$dsn = new Dsn($scheme, $env["MAIL_HOST"], $env["MAIL_USERNAME"], $env["MAIL_PASSWORD"], $port);
$email = (new Email())
    ->from(new Address($env["MAIL_FROM_ADDRESS"], $env["MAIL_FROM_NAME"] ?? ""))
    ->to($argv[1])
    ->subject("Hello")
    ->text("It works.");
(new EsmtpTransportFactory())->create($dsn)->send($email);

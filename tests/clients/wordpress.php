<?php
// SPDX-License-Identifier: Apache-2.0
// Sends as WordPress does in wp_mail: a PHPMailer with its own From, then the hook, then off it goes.
require "libphp-phpmailer/autoload.php";

$hooks = [];
function add_action(string $name, callable $hook): void
{
    global $hooks;
    $hooks[$name][] = $hook;
}

require getcwd() . "/smtp.php";

$mail = new PHPMailer\PHPMailer\PHPMailer(true);
$mail->setFrom("wordpress@localhost.localdomain", "WordPress", false);
$mail->addAddress($argv[1]);
$mail->Subject = "Hello";
$mail->Body = "It works.";
$mail->isMail();
$mail->CharSet = "UTF-8";
foreach ($hooks["phpmailer_init"] as $hook) {
    $hook($mail);
}
$mail->send();

# SPDX-License-Identifier: Apache-2.0
# Sends as Action Mailer does: what production.rb says is handed to the mail gem.
require "mail"

Mailer = Struct.new(:delivery_method, :smtp_settings, :default_options)
Config = Struct.new(:action_mailer)
config = Config.new(Mailer.new)
eval(File.read("production.rb"))
settings = config.action_mailer
message = Mail.new(from: settings.default_options[:from], to: ARGV[0], subject: "Hello", body: "It works.")
message.delivery_method(settings.delivery_method, settings.smtp_settings)
message.deliver!

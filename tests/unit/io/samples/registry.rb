# frozen_string_literal: true

require "json"
require_relative "errors"

LIMIT = 10

# Keeps what is known — größer.
module Registry
  VERSION = "1.0"

  class Entry < Struct.new(:name, :value)
    include Comparable
    attr_reader :hits, :since
    attr_writer :label

    # Makes an entry.
    def initialize(name, value, *rest, label: nil, **options, &block)
      super(name, value)
      @hits = 0
      @label = label
      @options = options
      instance_eval(&block) if block
    end

    def <=>(other)
      name <=> other.name
    end

    def touch!
      @hits += 1
      self
    rescue ArgumentError => error
      warn "not touched: #{error.message}"
    ensure
      @since = Time.now
    end

    class << self
      def parse(text)
        JSON.parse(text, symbolize_names: true).map { |row| new(*row.values) }
      end
    end

    private

    def secret
      <<~TEXT
        a heredoc
          with #{@label} 🎉
      TEXT
    end

    private def inline = @hits
  end

  def self.build(*names)
    names.each_with_object({}) do |name, found|
      found[name] = Entry.new(name, nil)
    end
  end

  module_function

  def known?(name)
    case name
    when /\A[a-z]+\z/ then true
    when nil, "" then false
    else name.respond_to?(:to_sym)
    end
  end
end

describe Registry do
  it "keeps entries" do
    expect(Registry.build(:a).keys).to eq [:a]
  end
end

task :clean do
  rm_rf %w[build tmp]
end

at_exit { puts "done" } if $PROGRAM_NAME == __FILE__
